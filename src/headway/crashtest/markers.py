"""For programs under test: say when an operation begins and when it was acknowledged.

Lines `begin X` and `ack X` go to the descriptor that HEADWAY_CRASH_FD names; without it nothing happens, so the calls may stay in a
program. Other languages write the same lines themselves. A marker is one line: line breaks in it become spaces.
"""

import os

VARIABLE = "HEADWAY_CRASH_FD"


def begin(operation: object) -> None:
    """An operation is about to start: from here on its effects may survive a crash, wholly or in part."""
    _say("begin", operation)


def ack(operation: object) -> None:
    """An operation was acknowledged: after a crash from here on its effects must be there."""
    _say("ack", operation)


def _say(word: str, operation: object) -> None:
    fd = os.environ.get(VARIABLE)
    if fd:
        # One write: markers of several threads and processes must not mix.
        os.write(int(fd), f"{word} {' '.join(str(operation).splitlines())}\n".encode("utf-8", "surrogateescape"))
