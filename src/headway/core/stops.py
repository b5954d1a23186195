"""Finds stop strings in text that arrives in pieces, holding back only what may still become one."""

from dataclasses import dataclass


@dataclass(slots=True)
class _Pattern:
    text: str
    borders: list[int]
    matched: int = 0


class StopMatcher:
    """One automaton (Knuth, Morris, Pratt 1977) a stop string, so that a piece costs its characters and nothing is searched twice."""

    __slots__ = ("_held", "_patterns", "stopped")

    def __init__(self, stops: tuple[str, ...]) -> None:
        """`stops`: non-empty strings."""
        self._patterns = [_Pattern(stop, _borders(stop)) for stop in stops]
        self._held = ""
        self.stopped = False

    def push(self, piece: str) -> str:
        """Text that may be shown now. After a match `stopped` is True, the stop string and all behind it are gone."""
        if self.stopped:
            return ""
        text = self._held + piece
        for at, character in enumerate(piece, start=len(self._held)):
            longest = 0
            for pattern in self._patterns:
                _advance(pattern, character)
                if pattern.matched == len(pattern.text):
                    longest = max(longest, pattern.matched)
            if longest:
                self.stopped = True
                self._held = ""
                return text[: at + 1 - longest]
        holding = max((pattern.matched for pattern in self._patterns), default=0)
        cut = len(text) - holding
        self._held = text[cut:]
        return text[:cut]

    def flush(self) -> str:
        """What was held when the text ended without a match."""
        held, self._held = self._held, ""
        return held


def _advance(pattern: _Pattern, character: str) -> None:
    matched = pattern.matched
    while matched and pattern.text[matched] != character:
        matched = pattern.borders[matched - 1]
    if pattern.text[matched] == character:
        matched += 1
    pattern.matched = matched


def _borders(text: str) -> list[int]:
    """For each prefix the length of its longest proper prefix that is also its suffix."""
    borders = [0] * len(text)
    length = 0
    for i in range(1, len(text)):
        while length and text[i] != text[length]:
            length = borders[length - 1]
        if text[i] == text[length]:
            length += 1
        borders[i] = length
    return borders
