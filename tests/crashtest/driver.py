"""A program that does file operations from a JSON list, run under the tracers by the tests: `python -I -S driver.py ROOT OPERATIONS`.

Operations that fail do so for it as for any program: the error is ignored, the next one follows.
"""

# System calls by their own names, and a start without pathlib.
# ruff: noqa: PTH102, PTH104, PTH106, PTH108, PTH123, PTH211
import ctypes
import json
import mmap
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

libc = ctypes.CDLL(None, use_errno=True)
Step = dict[str, Any]


class Driver:
    def __init__(self, root: str) -> None:
        self.root = root
        self.fds: list[int] = []
        self.maps: list[mmap.mmap] = []

    def path(self, name: str) -> str:
        return f"{self.root}/{name}"

    def fd(self, step: Step) -> int:
        if not self.fds:
            raise OSError("nothing is open")
        return self.fds[step["fd"] % len(self.fds)]

    def run(self, steps: list[Step]) -> None:
        for step in steps:
            action: Callable[[Step], None] = getattr(self, step["do"])
            try:
                action(step)
            except (OSError, ValueError):
                continue

    def open(self, step: Step) -> None:
        self.fds.append(os.open(self.path(step["name"]), step["flags"], 0o644))

    def open_relative(self, step: Step) -> None:
        here = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            self.fds.append(os.open(step["name"], step["flags"], 0o644, dir_fd=here))
        finally:
            os.close(here)

    def tmpfile(self, step: Step) -> None:
        fd = os.open(self.root, os.O_TMPFILE | os.O_RDWR, 0o644)
        self.fds.append(fd)
        os.write(fd, step["data"].encode())
        # AT_SYMLINK_FOLLOW through /proc: the way that needs no privilege
        libc.linkat(-100, f"/proc/self/fd/{fd}".encode(), -100, self.path(step["name"]).encode(), 0x400)

    def close(self, step: Step) -> None:
        fd = self.fd(step)
        self.fds.remove(fd)
        os.close(fd)

    def write(self, step: Step) -> None:
        os.write(self.fd(step), step["data"].encode() * step["times"])

    def writev(self, step: Step) -> None:
        os.writev(self.fd(step), [step["data"].encode(), b"", b"|v"])

    def pwrite(self, step: Step) -> None:
        os.pwrite(self.fd(step), step["data"].encode() * step["times"], step["offset"])

    def pwritev(self, step: Step) -> None:
        os.pwritev(self.fd(step), [step["data"].encode(), b"|pv"], step["offset"], os.RWF_DSYNC)

    def read(self, step: Step) -> None:
        os.read(self.fd(step), step["length"])

    def lseek(self, step: Step) -> None:
        os.lseek(self.fd(step), step["offset"], step["whence"])

    def ftruncate(self, step: Step) -> None:
        os.ftruncate(self.fd(step), step["length"])

    def truncate(self, step: Step) -> None:
        os.truncate(self.path(step["name"]), step["length"])

    def fallocate(self, step: Step) -> None:
        unit = 4096 if step["mode"] & 0x28 else 1
        libc.fallocate(self.fd(step), step["mode"], ctypes.c_long(step["offset"] * unit), ctypes.c_long((1 + step["length"]) * unit))

    def copy(self, step: Step) -> None:
        source, target = self.fd(step), self.fds[step["other"] % len(self.fds)]
        os.copy_file_range(source, target, step["length"], step["offset"] if step["explicit"] else None, None)

    def sendfile(self, step: Step) -> None:
        source, target = self.fd(step), self.fds[step["other"] % len(self.fds)]
        os.sendfile(target, source, step["offset"] if step["explicit"] else None, step["length"])

    def sync(self, step: Step) -> None:
        {"fsync": os.fsync, "fdatasync": os.fdatasync}[step["how"]](self.fd(step))

    def dup(self, step: Step) -> None:
        self.fds.append(os.dup(self.fd(step)))

    def dup2(self, step: Step) -> None:
        os.dup2(self.fd(step), self.fds[step["other"] % len(self.fds)])

    def append_on(self, step: Step) -> None:
        import fcntl

        fcntl.fcntl(self.fd(step), fcntl.F_SETFL, os.O_APPEND)

    def rename(self, step: Step) -> None:
        os.rename(self.path(step["name"]), self.path(step["new"]))

    def exchange(self, step: Step) -> None:
        libc.renameat2(-100, self.path(step["name"]).encode(), -100, self.path(step["new"]).encode(), 2)

    def link(self, step: Step) -> None:
        os.link(self.path(step["name"]), self.path(step["new"]))

    def symlink(self, step: Step) -> None:
        os.symlink(step["name"].rpartition("/")[2], self.path(step["new"]))

    def unlink(self, step: Step) -> None:
        os.unlink(self.path(step["name"]))

    def mkdir(self, step: Step) -> None:
        os.mkdir(self.path(step["name"]))

    def rmdir(self, step: Step) -> None:
        os.rmdir(self.path(step["name"]))

    def chdir(self, step: Step) -> None:
        os.chdir(self.path("d"))
        self.fds.append(os.open("../from-d", os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644))
        os.chdir("/")

    def xattr(self, step: Step) -> None:
        os.setxattr(self.fd(step), "user.k", step["data"].encode())

    def moved_in(self, step: Step) -> None:
        outside = f"{self.root}-outside"
        fd = os.open(outside, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o644)
        os.write(fd, step["data"].encode())
        os.rename(outside, self.path(step["name"]))
        self.fds.append(fd)

    def child(self, step: Step) -> None:
        """A child writes through a descriptor whose position it shares with the parent."""
        fd = self.fd(step)
        pid = os.fork()
        if pid == 0:
            try:
                os.write(fd, b"child")
                os.close(fd)
            finally:
                os._exit(0)
        os.waitpid(pid, 0)

    def threads(self, step: Step) -> None:
        """Two threads at once, each with a file of its own."""

        def write(name: str) -> None:
            fd = os.open(self.path(name), os.O_CREAT | os.O_WRONLY, 0o644)
            for number in range(step["times"] % 5):
                os.write(fd, f"{name}{number};".encode())
            os.fsync(fd)
            os.close(fd)

        both = [threading.Thread(target=write, args=(name,)) for name in ("t1", "t2")]
        for thread in both:
            thread.start()
        for thread in both:
            thread.join()

    def race(self, step: Step) -> None:
        """Four threads change the same names and append to one file."""
        log = os.open(self.path("log"), os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644)

        def change(number: int) -> None:
            for turn in range(step["times"]):
                choice = (number * 7 + turn * 5) % 6
                one, two = self.path("abc"[turn % 3]), self.path("abc"[(turn + number) % 3])
                try:
                    if choice == 0:
                        os.rename(one, two)
                    elif choice == 1:
                        os.unlink(one)
                    elif choice < 4:
                        fd = os.open(one, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644)
                        os.write(fd, f"{number}-{turn};".encode())
                        os.close(fd)
                    else:
                        os.write(log, f"{number}-{turn};".encode())
                except OSError:
                    continue

        all_four = [threading.Thread(target=change, args=(number,)) for number in range(4)]
        for thread in all_four:
            thread.start()
        for thread in all_four:
            thread.join()

    def store(self, step: Step) -> None:
        """Through a shared mapping; only the ptrace tracer can see it."""
        fd = self.fd(step)
        size = os.fstat(fd).st_size
        if size:
            mapped = mmap.mmap(fd, size)
            mapped[step["offset"] % size] = 0x40 + step["length"] % 26
            if step["explicit"]:
                mapped.flush()
            self.maps.append(mapped)

    def marker(self, step: Step) -> None:
        os.write(int(os.environ["HEADWAY_CRASH_FD"]), f"{step['how']} {step['data']}\n".encode())

    def sleep(self, step: Step) -> None:
        time.sleep(step["length"])


if __name__ == "__main__":
    with open(sys.argv[2]) as file:
        listed = json.load(file)
    Driver(sys.argv[1]).run(listed)
