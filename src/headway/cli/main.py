"""Entry point of `headway`: finds the sub-command, imports only that, and turns errors into one clear line and an exit code."""

import os
import sys
from importlib import import_module
from types import ModuleType

from headway import __version__
from headway.cli.commands import COMMANDS, SINGLE_THREADED, Command
from headway.core.errors import HeadwayError

EXIT_OK, EXIT_INTERNAL, EXIT_ERROR, EXIT_INTERRUPTED = 0, 1, 2, 130

HELP = """\
usage: headway COMMAND [options]

One engine for a machine's GenAI work that knows every request's deadlines.

{commands}

Start here:
  headway serve                                       serve smollm2-135m at http://127.0.0.1:8000 (OpenAI API and a chat page)
  headway chat                                        talk to it; without a server it loads the model itself
  headway bench demo                                  three apps share the model: with promises, and first come first served

Then:
  headway models                                      what can be pulled, and what is here
  headway pull smollm2-135m                           fetch and verify one
  headway calibrate                                   measure how long work takes here (2 minutes; promises get sharper)
  headway serve --accuracy exact --kv-memory 1GiB     more exact arithmetic, a larger KV pool
  headway replay FILE                                 repeat every decision of a recorded run
  headway doctor                                      what this machine has, and what is missing for what

`headway COMMAND --help` explains one command. HEADWAY_HOME moves caches and state, HEADWAY_DEBUG=1 shows tracebacks.
"""


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 fine, 1 a bug or a difference found, 2 an error with a remedy, 130 interrupted."""
    try:
        return _dispatch(sys.argv[1:] if argv is None else argv)
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # `headway models | head`: the reader has gone, and the interpreter must not flush into it at exit
        os.dup2(os.open(os.devnull, os.O_RDWR), sys.stdout.fileno())
        return EXIT_OK
    except HeadwayError as error:
        return _complain(str(error), EXIT_ERROR)
    except OSError as error:
        return _complain(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}", EXIT_ERROR)
    except Exception as error:
        return _complain(f"this is a bug in headway ({type(error).__name__}: {error}); HEADWAY_DEBUG=1 shows where", EXIT_INTERNAL)


def _dispatch(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        if len(argv) > 1 and argv[0] == "help":
            return _dispatch([argv[1], "--help"])
        sys.stdout.write(top_help())
        return EXIT_OK
    if argv[0] in ("-V", "--version"):
        print(f"headway {__version__}")
        return EXIT_OK
    command = COMMANDS.get(argv[0])
    if command is None:
        return _complain(_unknown(argv[0]), EXIT_ERROR)
    if command.computes:
        _single_thread_the_libraries()
        _require_supported_machine()
    return _run(argv[0], command, argv[1:])


def _run(name: str, command: Command, argv: list[str]) -> int:
    module = _load(name, command)
    try:
        status = module.run(argv)
    except ImportError as error:
        raise _missing(name, command, error) from error
    return int(status)


def _load(name: str, command: Command) -> ModuleType:
    try:
        return import_module(command.module)
    except ImportError as error:
        raise _missing(name, command, error) from error


def _missing(name: str, command: Command, error: ImportError) -> HeadwayError:
    """A package of an extra that is not installed; an ImportError inside Headway itself is a bug and stays one."""
    if error.name is None or error.name.partition(".")[0] == "headway" or not command.extra:
        raise error
    return HeadwayError(f"`headway {name}` needs the package {error.name}, which is not installed: pip install 'headway[{command.extra}]'")


def top_help() -> str:
    """The page of `headway --help`."""
    width = max(map(len, COMMANDS))
    return HELP.format(commands="\n".join(f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items()))


def _unknown(word: str) -> str:
    from difflib import get_close_matches

    near = get_close_matches(word, COMMANDS, n=1)
    return f"there is no command {word!r}; {f'did you mean `headway {near[0]}`?' if near else '`headway --help` lists them'}"


def _single_thread_the_libraries() -> None:
    """Before numpy or tokenizers load: only the engine's Team computes; threads of libraries would fight it."""
    for name, value in SINGLE_THREADED.items():
        os.environ[name] = value


def _require_supported_machine() -> None:
    from headway.cli.machine import require_supported

    require_supported()


def _complain(message: str, status: int) -> int:
    if os.environ.get("HEADWAY_DEBUG") == "1" and sys.exc_info()[0] is not None:
        import traceback

        traceback.print_exc()
    print(f"headway: {message}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
