"""`headway chat`: a conversation in the terminal, with the pace and the slack of every answer under it."""

import contextlib
import os
import sys
from typing import TextIO

from headway.cli.conversation import AnswerSettings, HttpSpeaker, LocalSpeaker, Message, Pace, RequestFailed, Speaker
from headway.cli.model_flags import add_model_flags, config_of
from headway.cli.parser import CommandParser
from headway.cli.servers import live_servers

EXAMPLES = """\
  headway chat                                 join the newest running server, else load smollm2-135m here
  headway chat --once "Why is the sky blue?"   one answer, then leave (text on stdout, the rest on stderr)
  headway chat --url http://127.0.0.1:8080     join that server (its key from HEADWAY_API_KEY)
  headway chat ./my-model.gguf --accuracy exact --in-place

in the conversation: /new starts over, /system TEXT sets the instructions, /quit leaves; Ctrl-C stops the answer
"""
COMMANDS_LINE = "/new starts over, /system TEXT sets the instructions, /quit leaves; Ctrl-C stops an answer; a line ending in \\ goes on"
DIM, BOLD, RED, PLAIN = "\x1b[2m", "\x1b[1m", "\x1b[31m", "\x1b[0m"


def run(argv: list[str]) -> int:
    args = _parser().parse_args(argv)
    settings = AnswerSettings(args.max_tokens, args.temperature, args.top_p, args.cls)
    history: list[Message] = [{"role": "system", "content": args.system}] if args.system else []
    with contextlib.closing(_speaker(args)) as speaker:
        chat = Chat(speaker, settings, history, sys.stdin, sys.stdout, sys.stderr)
        return chat.once(args.once) if args.once is not None else chat.talk()


def _parser() -> CommandParser:
    parser = CommandParser("chat", "Talk to a model. Joins the newest running server of this machine, else loads the model here.", EXAMPLES)
    add_model_flags(parser)
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--url", help="join this server")
    where.add_argument("--in-place", action="store_true", help="load the model here even if a server runs")
    parser.add_argument("--once", metavar="TEXT", help="one question, one answer")
    parser.add_argument("--system", metavar="TEXT", help="instructions to the model")
    # 0.2 and 0.9 are what the SmolLM2 model card uses for its instruct models.
    parser.add_argument("--temperature", type=float, default=0.2, help="0 = always the likeliest token (default 0.2)")
    parser.add_argument("--top-p", type=float, default=0.9, help="share of probability to draw from (default 0.9)")
    parser.add_argument("--max-tokens", type=int, default=512, help="longest answer (default 512)")
    parser.add_argument(
        "--class", dest="cls", default="interactive", choices=("realtime", "interactive", "batch", "background"), help="promise to ask for"
    )
    return parser


def _speaker(args: object) -> Speaker:
    """The server that --url names, the newest live one that has the model asked for, or the model loaded here."""
    url, in_place, model = args.url, args.in_place, args.model  # type: ignore[attr-defined]
    key = os.environ.get("HEADWAY_API_KEY")
    if url:
        return HttpSpeaker(url, model or "", key)
    if not in_place:
        for server in live_servers():
            if model in (None, server.model):
                return HttpSpeaker(server.url, server.model, key)
    config = config_of(args)  # type: ignore[arg-type]
    print(f"No server runs here with this model; loading {config.model} in place ...", file=sys.stderr)
    from headway import LLM

    llm = LLM(
        config.model,
        accuracy=config.accuracy,
        threads=config.threads,
        kv_memory_bytes=config.kv_memory_bytes,
        kv_dtype=config.kv_dtype,
        context_tokens=config.context_tokens,
    )
    return LocalSpeaker(config.model, llm)


class Chat:
    """The loop of reading a line and streaming an answer. Streams are given, so that it can be driven without a terminal."""

    def __init__(
        self, speaker: Speaker, settings: AnswerSettings, history: list[Message], source: TextIO, out: TextIO, notes: TextIO
    ) -> None:
        self._speaker = speaker
        self._settings = settings
        self._history = history
        self._source = source
        self._out = out
        self._notes = notes
        self._coloured = out.isatty() and "NO_COLOR" not in os.environ
        self._interactive = source.isatty() and out.isatty()

    def talk(self) -> int:
        """Until /quit or the end of input; piped input is a script: one line, one message."""
        if self._interactive:
            with contextlib.suppress(ImportError):
                import readline  # noqa: F401  (line editing and history for input())
            self._say(f"{self._paint(BOLD, 'Headway chat')} with {self._speaker.about}\n{self._paint(DIM, COMMANDS_LINE)}\n")
        while True:
            try:
                line = self._read()
            except EOFError:
                return 0
            except KeyboardInterrupt:  # Ctrl-C at the prompt clears the line, as shells do
                self._say("\n")
                continue
            if line.startswith("/"):
                if self._command(line):
                    return 0
            elif line:
                self._answer(line)

    def once(self, text: str) -> int:
        """One answer; 0 if it came."""
        return 0 if self._answer(text) else 2

    def _read(self) -> str:
        """One message: a line, and more while they end in a backslash. Raises EOFError at the end of input."""
        parts: list[str] = []
        while True:
            line = self._read_line("  " if parts else "> ")
            parts.append(line.removesuffix("\\"))
            if not line.endswith("\\"):
                return "\n".join(parts).strip()

    def _read_line(self, prompt: str) -> str:
        if self._interactive:
            return input(prompt)
        line = self._source.readline()
        if not line:
            raise EOFError
        return line.rstrip("\n")

    def _command(self, line: str) -> bool:
        """True: leave."""
        name, _, text = line.partition(" ")
        if name in ("/quit", "/exit", "/q"):
            return True
        if name == "/new":
            self._history[:] = [message for message in self._history if message["role"] == "system"]
            self._note("a new conversation")
        elif name == "/system":
            self._history[:] = [{"role": "system", "content": text.strip()}] if text.strip() else []
            self._note("new instructions, a new conversation" if text.strip() else "no instructions, a new conversation")
        else:
            self._note(COMMANDS_LINE)
        return False

    def _answer(self, text: str) -> bool:
        """Streams one answer and remembers it; a stopped answer is remembered as far as it came, a failed one is taken back."""
        messages = [*self._history, {"role": "user", "content": text}]
        pieces: list[str] = []
        pace: Pace | None = None
        stream = self._speaker.answer(messages, self._settings)
        stopped = False
        try:
            for piece, latest in stream:
                pace = latest
                pieces.append(piece)
                self._say(piece)
        except KeyboardInterrupt:
            stopped = True
        except RequestFailed as error:
            self._say("\n" if pieces else "")
            self._note(str(error), RED)
            return False
        finally:
            close = getattr(stream, "close", None)
            if close is not None:
                close()
        self._say("\n")
        if pace is not None:
            self._note(describe_pace(pace, stopped=stopped))
        if pieces:
            self._history[:] = [*messages, {"role": "assistant", "content": "".join(pieces)}]
        return True

    def _say(self, text: str) -> None:
        self._out.write(text)
        self._out.flush()

    def _note(self, text: str, colour: str = DIM) -> None:
        self._out.flush()
        print(self._paint(colour, text), file=self._notes, flush=True)

    def _paint(self, colour: str, text: str) -> str:
        return f"{colour}{text}{PLAIN}" if self._coloured else text


def describe_pace(pace: Pace, *, stopped: bool = False) -> str:
    """The line under an answer, such as `87 tokens · 92.1 tok/s · first after 0.14 s · slack 0.36 s · promise kept`."""
    parts = [f"{pace.tokens} tokens"]
    if pace.tokens_per_s is not None:
        parts.append(f"{pace.tokens_per_s:.1f} tok/s")
    if pace.ttft_s is not None:
        parts.append(f"first after {pace.ttft_s:.2f} s")
    slack_s = pace.slack_s
    if slack_s is not None:
        parts.append(f"slack {slack_s:.2f} s" if slack_s >= 0 else f"late by {-slack_s:.2f} s")
        kept = pace.met if pace.met is not None else slack_s >= 0
        parts.append("promise kept" if kept else "promise missed")
    if stopped:
        parts.append("stopped")
    return " · ".join(parts)
