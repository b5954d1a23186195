"""The engine process: `python -m headway.engine.process FD ENGINE_ID BOOT FRONT_PID [FACTORY]`.

The front owns this process: when it goes, so does this one (end of file on the channel; PR_SET_PDEATHSIG inside a long call).
FACTORY ("module:function") is for test doubles; see engine.loop.
"""

import ctypes
import os
import signal
import socket
import sys

_PR_SET_PDEATHSIG = 1
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS", "RAYON_NUM_THREADS"), "1") | {
    "TOKENIZERS_PARALLELISM": "false"
}
"""Set in both processes before anything imports numpy or numba: the Team owns the cores (docs/kernels.md)."""


def die_with_parent(parent_pid: int) -> None:
    """The kernel kills this process when the front's main thread ends, even inside a long native call. Linux only (prctl(2))."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        sys.exit(f"prctl(PR_SET_PDEATHSIG) failed with errno {ctypes.get_errno()}: a Linux kernel is needed")
    if os.getppid() != parent_pid:  # it died before we asked
        sys.exit(3)


def main(arguments: list[str]) -> int:
    fd, engine_id, boot, parent_pid, *factory = arguments
    os.environ.update(ONE_THREAD)
    die_with_parent(int(parent_pid))
    # A terminal's Ctrl-C and a service manager's TERM reach the whole group; the front drains first, then sends Stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    from headway.engine.loop import serve  # after the environment

    return serve(socket.socket(fileno=int(fd)), engine_id, int(boot), *factory)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
