"""Runs a Python oracle on many directories without importing anything twice: a server process imports once and forks for each state.

A state then costs a fork and the check itself. A child that dies of a signal or answers too late is a verdict, never an error of ours.
A program that starts threads when it is imported cannot be forked safely: use a ProgramOracle for it.
"""

import contextlib
import faulthandler
import json
import os
import select
import signal
import socket
import struct
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from headway.core.errors import HeadwayError
from headway.crashtest.oracle import DEFAULT_TIMEOUT_S, Oracle, Verdict, signal_name

_LENGTH = struct.Struct("<I")
_ANSWER_BYTES = 8192


class CheckerDied(HeadwayError):
    """The server process itself ended: the oracle's module could not be loaded, or something killed it."""


class ForkServer:
    """One server process. `load()` runs in it, once, and returns the oracle; `submit` and `result` alternate, or use `check`."""

    def __init__(self, load: Callable[[], Oracle], *, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        self.timeout_s = timeout_s
        ours, theirs = socket.socketpair()
        self.pid = os.fork()
        if self.pid == 0:
            ours.close()
            _serve(theirs, load, timeout_s)
        theirs.close()
        self._socket = ours
        ready = self._receive()
        if ready != {"ready": True}:
            self.close()
            raise CheckerDied(str(ready["error"]))

    def submit(self, directory: Path, acks: Sequence[str], begun: Sequence[str]) -> None:
        """Starts one check; its verdict is fetched by `result`."""
        _send(self._socket, {"dir": str(directory), "acks": list(acks), "begun": list(begun)})

    def result(self) -> Verdict:
        """Waits for the check that was submitted last."""
        answer = self._receive()
        verdict = answer["verdict"]
        return None if verdict is None else str(verdict)

    def check(self, directory: Path, acks: Sequence[str], begun: Sequence[str]) -> Verdict:
        self.submit(directory, acks, begun)
        return self.result()

    def fileno(self) -> int:
        """Readable when a result is there."""
        return self._socket.fileno()

    def close(self) -> None:
        """Ends the server and whatever it still runs."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # servers forked later hold copies of this end: closing it alone is not heard
        self._socket.close()
        deadline = time.monotonic() + 2
        while time.monotonic() < deadline:
            pid, _ = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return
            time.sleep(0.005)
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)

    def _receive(self) -> dict[str, Any]:
        message = _read(self._socket)
        if message is None:
            raise CheckerDied("the checker's server process ended unexpectedly: run its function by hand on one directory to see why")
        return message

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _serve(connection: socket.socket, load: Callable[[], Oracle], timeout_s: float) -> None:
    """The server process: never returns."""
    status = 0
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle; it closes the socket
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        try:
            oracle = load()
        except BaseException as problem:
            _send(connection, {"error": f"the oracle cannot be loaded: {type(problem).__name__}: {problem}"})
            os._exit(1)
        _send(connection, {"ready": True})
        while (request := _read(connection)) is not None:
            _send(connection, {"verdict": _check_in_child(oracle, request, timeout_s, connection)})
    except (BrokenPipeError, ConnectionResetError):
        status = 0
    except BaseException:
        status = 1
    os._exit(status)


def _check_in_child(oracle: Oracle, request: dict[str, Any], timeout_s: float, connection: socket.socket) -> Verdict:
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.setpgid(0, 0)
        os.close(reader)
        connection.close()
        _answer(oracle, request, writer)
    os.close(writer)
    try:
        answer = _await(reader, pid, timeout_s, connection)
    finally:
        os.close(reader)
        _kill_group(pid)
        _, status = os.waitpid(pid, 0)
    if answer is None:
        return f"the check did not answer within {timeout_s:g} s"
    if answer:
        verdict = json.loads(answer)
        return None if verdict is None else str(verdict)
    if os.WIFSIGNALED(status):
        return f"the check was ended by {signal_name(os.WTERMSIG(status))}"
    return f"the check ended without a verdict (exit {os.waitstatus_to_exitcode(status)})"


def _answer(oracle: Oracle, request: dict[str, Any], writer: int) -> None:
    """The child of one check: never returns."""
    try:
        faulthandler.disable()  # a signal is a verdict here, not a reason for a traceback
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 0)
        os.dup2(null, 1)
        os.dup2(null, 2)
        try:
            verdict = oracle.check(Path(request["dir"]), request["acks"], request["begun"])
        except BaseException as problem:
            verdict = f"{type(problem).__name__}: {problem}"
        text = None if verdict is None else verdict[: _ANSWER_BYTES // 8]
        os.write(writer, json.dumps(text).encode())
    finally:
        os._exit(0)


def _await(reader: int, pid: int, timeout_s: float, connection: socket.socket) -> bytes | None:
    """The child's answer, b"" when it died without one, None when time ran out (or the parent went away)."""
    deadline = time.monotonic() + timeout_s
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            return None
        ready, _, _ = select.select([reader, connection.fileno()], [], [], left)
        if reader in ready:
            return os.read(reader, _ANSWER_BYTES)
        if connection.fileno() in ready:  # only an end of file comes while a check runs
            return None


def _kill_group(pid: int) -> None:
    for kill in (os.killpg, os.kill):
        try:
            kill(pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            continue


def _send(connection: socket.socket, message: dict[str, Any]) -> None:
    raw = json.dumps(message).encode()
    connection.sendall(_LENGTH.pack(len(raw)) + raw)


def _read(connection: socket.socket) -> dict[str, Any] | None:
    head = _exactly(connection, _LENGTH.size)
    if head is None:
        return None
    raw = _exactly(connection, _LENGTH.unpack(head)[0])
    if raw is None:
        return None
    message: dict[str, Any] = json.loads(raw)
    return message


def _exactly(connection: socket.socket, size: int) -> bytes | None:
    parts = bytearray()
    while len(parts) < size:
        try:
            part = connection.recv(size - len(parts))
        except (ConnectionResetError, OSError):
            return None
        if not part:
            return None
        parts += part
    return bytes(parts)
