"""Parses what strace writes (-f, -y, with or without -xx, with or without time stamps) into decoded system calls."""

import re
from collections.abc import Iterable, Iterator

from headway.crashtest.linux_abi import NAMED, SYSTEM_CALLS
from headway.crashtest.operations import TraceError
from headway.crashtest.trace.calls import Argument, Call, Cut, Descriptor

_PREFIX = re.compile(r"(?:\[pid +(\d+)\] |(\d+) +)?(?:\d+:\d+:\d+(?:\.\d+)? |\d+\.\d+ )?(?:\(\+ *\d+\.\d+\) )?")
_UNFINISHED = " <unfinished ...>"
_RESUMED = re.compile(r"<\.\.\. (\w+) resumed> ?")
_NAME = re.compile(r"(\w+)\(")
_RESULT = re.compile(r"\)?\s*= (0x[0-9a-f]+|-?\d+|\?)(<)?")
_STRING = re.compile(r'@?"([^"\\]*+(?:\\.[^"\\]*+)*+)"(\.\.\.)?', re.DOTALL)
_BRACKETED_PATH = re.compile(r"<((?:\[[^\]]*\]|\\.|[^>\\])*)>(\(deleted\))?")
_NUMBER = re.compile(r"-?(?:0x[0-9a-fA-F]+|\d+)")
_WORD = re.compile(r"[A-Za-z_][\w.]*")
_SKIP = re.compile(r"[\s,]+")
_ESCAPE = re.compile(rb"\\(x[0-9a-fA-F]{1,2}|[0-7]{1,3}|.)", re.DOTALL)
_ESCAPED = {b"n": b"\n", b"t": b"\t", b"r": b"\r", b"v": b"\v", b"f": b"\f", b"a": b"\a", b"b": b"\b", b"e": b"\x1b"}


def parse(lines: Iterable[str], *, first_tid: int = 1) -> Iterator[Call]:
    """Successful calls in the order of their exits. `lines` are Latin-1 text; lines without a process id belong to `first_tid`.

    Calls that strace saw begin but not return, failed calls and calls of no interest are dropped. Raises TraceError naming the line.
    """
    pending: dict[int, tuple[int, str]] = {}
    for number, raw in enumerate(lines, 1):
        line = raw.rstrip("\n")
        prefix = _PREFIX.match(line)
        assert prefix is not None
        tid = int(prefix[1] or prefix[2] or first_tid)
        start, enter = prefix.end(), number
        if line.startswith(("+++", "---"), start) or start == len(line):
            continue
        if line.endswith(_UNFINISHED):
            pending[tid] = (number, line[start : -len(_UNFINISHED)])
            continue
        resumed = _RESUMED.match(line, start)
        if resumed:
            if tid not in pending:
                continue  # its beginning is older than the log
            enter, beginning = pending.pop(tid)
            text = beginning + line[resumed.end() :]
        else:
            text = line[start:]
        name = _NAME.match(text)
        if name is None:
            raise TraceError(f"strace log, line {number}: {text[:80]!r} is no system call; give a log of `strace -f -y -xx`")
        if name[1] not in SYSTEM_CALLS:
            continue
        call = _call(text, name, number)
        if call is not None:
            arguments, result, result_path = call
            yield Call(enter, number, tid, name[1], arguments, result, result_path)


def _call(text: str, name: re.Match[str], number: int) -> tuple[list[Argument], int, str | None] | None:
    scanner = _Scanner(text, name.end())
    try:
        arguments = scanner.arguments()
    except (IndexError, ValueError) as problem:
        raise TraceError(f"strace log, line {number}: cannot read {text[:120]!r} ({problem})") from problem
    if name[1] in ("exit_group",):
        return arguments, 0, None
    found = _RESULT.match(text, scanner.at)
    if found is None:
        raise TraceError(f"strace log, line {number}: no result in {text[:120]!r}; was strace stopped while it wrote?")
    if found[1] == "?" or found[1].startswith("-"):
        return None
    path = None
    if found[2]:
        bracketed = _BRACKETED_PATH.match(text, found.end() - 1)
        path = _path(bracketed[1]) if bracketed else None
    return arguments, int(found[1], 0), path


class _Scanner:
    """Recursive descent over one call's arguments. `at` is where it stands."""

    def __init__(self, text: str, at: int) -> None:
        self.text = text
        self.at = at

    def arguments(self) -> list[Argument]:
        """Up to and including the closing parenthesis."""
        return self._sequence(")")

    def _sequence(self, end: str) -> list[Argument]:
        values: list[Argument] = []
        while True:
            self._skip()
            if self.text.startswith(end, self.at):
                self.at += len(end)
                return values
            if self.text.startswith("...", self.at):
                self.at += 3
                continue
            if self.text.startswith("=> ", self.at):  # clone3: what the kernel wrote back
                self.at += 3
                self._value()
                continue
            values.append(self._value())

    def _skip(self) -> None:
        found = _SKIP.match(self.text, self.at)
        if found:
            self.at = found.end()
        while self.text.startswith("/*", self.at):
            self.at = self.text.index("*/", self.at) + 2
            found = _SKIP.match(self.text, self.at)
            self.at = found.end() if found else self.at

    def _value(self) -> Argument:
        text, here = self.text, self.at
        char = text[here]
        if char in '"@':
            return self._string()
        if char == "[":
            self.at += 1
            return self._sequence("]")
        if char == "{":
            self.at += 1
            return self._structure()
        if char == "~":
            self.at += 1
            return self._value()
        word = _WORD.match(text, here)
        if word and text.startswith("=", word.end()) and not text.startswith("==", word.end()):  # flags=..., as clone prints it
            self.at = word.end() + 1
            return {word[0]: self._value()}
        return self._flags()

    def _string(self) -> Argument:
        found = _STRING.match(self.text, self.at)
        if found is None:
            raise ValueError("a string does not end")
        self.at = found.end()
        data = unescape(found[1])
        return Cut(data) if found[2] else data

    def _structure(self) -> Argument:
        fields: dict[str, Argument] = {}
        while True:
            self._skip()
            if self.text.startswith("}", self.at):
                self.at += 1
                return fields
            if self.text.startswith("...", self.at):
                self.at += 3
                continue
            name = _WORD.match(self.text, self.at)
            if name is None or not self.text.startswith("=", name.end()):
                self._value()
                continue
            self.at = name.end() + 1
            fields[name[0]] = self._value()

    def _flags(self) -> Argument:
        """A number, a descriptor with its path, or names joined by |; unknown names count as 0."""
        total, any_number = 0, False
        while True:
            number = _NUMBER.match(self.text, self.at)
            word = None if number else _WORD.match(self.text, self.at)
            if number:
                total |= _integer(number[0])
                any_number = True
                self.at = number.end()
            elif word:
                total |= NAMED.get(word[0], 0)
                self.at = word.end()
                if self.text.startswith("(", self.at):  # makedev(...), htons(...)
                    self.at += 1
                    self._sequence(")")
            else:
                raise ValueError(f"unexpected {self.text[self.at : self.at + 20]!r}")
            if self.text.startswith("<", self.at) and (any_number or (word and word[0] == "AT_FDCWD")):
                found = _BRACKETED_PATH.match(self.text, self.at)
                if found:
                    self.at = found.end()
                    return Descriptor(NAMED["AT_FDCWD"] if word else total, _path(found[1]))
            if self.text.startswith(("|", "*"), self.at):
                self.at += 1
                continue
            if word and word[0] == "NULL":
                return None
            return total


def _integer(text: str) -> int:
    if text.startswith("0") and len(text) > 1 and text[1] not in "xX":
        return int(text, 8)
    return int(text, 0)


def unescape(text: str) -> bytes:
    r"""The bytes of a string as strace prints it: \x41, \101, \n, or the character itself."""
    if len(text) % 4 == 0 and text.count("\\x") == len(text) // 4:
        return bytes.fromhex(text.replace("\\x", ""))
    raw = text.encode("latin-1", "surrogateescape")
    return _ESCAPE.sub(_unescape_one, raw) if b"\\" in raw else raw


def _unescape_one(found: re.Match[bytes]) -> bytes:
    code = found[1]
    if code.startswith(b"x") and len(code) > 1:
        return bytes([int(code[1:], 16)])
    if code.isdigit():
        return bytes([int(code, 8) & 0xFF])
    return _ESCAPED.get(code, code)


def _path(text: str) -> str:
    return unescape(text).decode("utf-8", "surrogateescape")
