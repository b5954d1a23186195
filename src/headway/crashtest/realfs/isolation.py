"""Runs a function in a forked process with private mounts that dies with its parent; brings back its result, progress or error."""

import os
import pickle
import signal
import socket
import struct
from collections.abc import Callable
from typing import TypeVar

from headway.core.errors import HeadwayError
from headway.crashtest.realfs.kernel import die_with_parent, private_mounts

T = TypeVar("T")
_HEAD = struct.Struct("<I")


Report = Callable[[int, int], None]


def in_own_process(body: Callable[[Report], T], progress: Report | None) -> T:
    """`body(report)` runs in the child; `report(done, total)` reaches `progress` in the parent.

    HeadwayErrors come back as themselves, others as HeadwayError with their text.
    """
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        ours.close()
        _child(theirs, body)
    theirs.close()
    try:
        with ours.makefile("rb") as stream:
            while True:
                head = stream.read(_HEAD.size)
                if len(head) < _HEAD.size:
                    raise HeadwayError("the process that held the file system ended unexpectedly; the kernel has removed its mounts")
                # Pickle: both ends are this program, joined by a socket pair.
                kind, value = pickle.loads(stream.read(_HEAD.unpack(head)[0]))
                if kind == "progress":
                    if progress is not None:
                        progress(*value)
                elif kind == "error":
                    raise value
                else:
                    result: T = value
                    return result
    finally:
        ours.close()
        _end(pid)


def _end(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGTERM)
    except ProcessLookupError:
        return
    os.waitpid(pid, 0)


def _child(connection: socket.socket, body: Callable[[Report], object]) -> None:
    """Never returns."""

    def send(kind: str, value: object) -> None:
        raw = pickle.dumps((kind, value))
        connection.sendall(_HEAD.pack(len(raw)) + raw)

    def stop(number: int, frame: object) -> None:
        raise SystemExit(1)

    try:
        signal.signal(signal.SIGTERM, stop)
        die_with_parent()
        private_mounts()
        try:
            send("result", body(lambda done, total: send("progress", (done, total))))
        except HeadwayError as problem:
            send("error", problem)
        except Exception as problem:
            send("error", HeadwayError(f"the real-file-system session failed: {type(problem).__name__}: {problem}"))
    finally:
        os._exit(0)
