"""Runs a tracer and what it traces such that no process of them outlives it: `python -I -S leash.py PARENT -- COMMAND ...`.

It adopts every orphan below it (subreaper), and kills whatever is left when the tracer ends, when it is told to stop (SIGTERM, SIGINT),
or when PARENT dies. It imports as little as possible, because every trace waits for its start.
"""

import ctypes
import os
import signal
import sys
import time

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # include/uapi/linux/prctl.h


def main(arguments: list[str]) -> int:
    """Exit code of the command; -N in the usual 128 + N form when a signal ended it."""
    parent, command = int(arguments[0]), arguments[2:]
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, _stop)
    if os.getppid() != parent:  # it died before the line above
        return 128 + signal.SIGTERM
    status = 128 + signal.SIGTERM
    try:
        child = os.fork()
        if child == 0:
            try:
                prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
                for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                    signal.signal(number, signal.SIG_DFL)
                os.execvp(command[0], command)
            except OSError as problem:
                os.write(2, f"{command[0]}: {problem.strerror}\n".encode())
            finally:
                os._exit(127)
        while True:
            pid, ended = os.wait()
            if pid == child:
                code = os.waitstatus_to_exitcode(ended)
                status = code if code >= 0 else 128 - code
                break
    except KeyboardInterrupt:
        status = 128 + signal.SIGTERM
    finally:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        _kill_descendants()
    return status


def _stop(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _kill_descendants() -> None:
    """Until none is left: a process may fork while it is looked for."""
    while True:
        below = _descendants(os.getpid())
        if not below:
            return
        for pid in below:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            continue
        time.sleep(0.002)


def _descendants(root: int) -> list[int]:
    parents: dict[int, int] = {}
    for entry in os.listdir("/proc"):  # noqa: PTH208 (pathlib is a slow import)
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat", "rb") as file:  # noqa: PTH123
                    parents[int(entry)] = int(file.read().rpartition(b")")[2].split()[1])
            except OSError:
                continue  # it ended meanwhile
    found = []
    for pid in parents:
        above = pid
        while above in parents and above != root:
            above = parents[above]
        if above == root and pid != root:
            found.append(pid)
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
