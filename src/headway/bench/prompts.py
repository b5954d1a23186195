"""Prompt texts of the built-in sources: a pure function of (source, draw, tokens), distinct for every request.

Distinct because a prefix cache turns a repeated prompt into fiction. Lengths are in tokens by a measured
average of characters a token; what the server really counted is in the reply's usage and in the report.
"""

from functools import cache
from importlib.resources import files

from headway.core.errors import ConfigError

# Characters a token of SmolLM2's tokenizer on the packaged texts (measured: emma 4.42, pride 4.28, code 3.66).
_PROSE_CHARS = 4.33
_CODE_CHARS = 3.66
_DEFAULT_TOKENS = {"builtin:questions": 120, "builtin:code": 160, "builtin:documents": 2000}
_ASKS = (
    "What is the speaker's mood here, and how can you tell?",
    "Explain in plain words what happens in these lines.",
    "Who is described here, and what do we learn about them?",
    "How would you say this today?",
    "What might happen next? Give two possibilities.",
    "Which word in these lines carries the irony, and why?",
)


def sources() -> tuple[str, ...]:
    """Names a workflow may use as `data.prompts`."""
    return tuple(_DEFAULT_TOKENS)


def text(source: str, draw: int, tokens: int = 0) -> str:
    """The prompt of one request.

    `draw`: a 64-bit number of the schedule; it picks the place in the text and opens the prompt, so two draws never share a prefix.
    `tokens`: wanted length, 0 = the source's default. Raises ConfigError for an unknown source.
    """
    if source not in _DEFAULT_TOKENS:
        raise ConfigError(f"data.prompts: {source!r} is none of {', '.join(_DEFAULT_TOKENS)}")
    tokens = tokens or _DEFAULT_TOKENS[source]
    mark = f"{draw & 0xFFFFFF:06x}"
    if source == "builtin:code":
        body = _cut(_read("code.py.txt"), draw, int(tokens * _CODE_CHARS) - 24, "\n")
        return f"# module part_{mark}\n{body}"
    prose = _read("emma.txt" if draw & 1 else "pride-and-prejudice.txt")
    if source == "builtin:documents":
        lead = f"Document {mark}. Summarise the following chapter in three sentences.\n\n"
        return lead + _cut(prose, draw, int(tokens * _PROSE_CHARS) - len(lead), " ")
    ask = _ASKS[(draw >> 40) % len(_ASKS)]
    lead = f"Note {mark}. {ask}\n\n"
    return lead + _cut(prose, draw, int(tokens * _PROSE_CHARS) - len(lead), " ")


def _cut(corpus: str, draw: int, chars: int, boundary: str) -> str:
    """`chars` characters from a drawn place, starting after a boundary; wraps around at the end."""
    chars = max(1, chars)
    start = corpus.find(boundary, (draw >> 8) % len(corpus)) + 1
    piece = corpus[start : start + chars]
    while len(piece) < chars:
        piece += corpus[: chars - len(piece)]
    return piece


@cache
def _read(name: str) -> str:
    return files("headway.bench").joinpath("data", name).read_text(encoding="utf-8")
