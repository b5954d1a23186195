"""The listening socket, and who has the port when it is taken."""

import errno
import socket
from pathlib import Path

import msgspec

from headway.core import paths
from headway.core.errors import ConfigError


def listen(host: str, port: int) -> socket.socket:
    """A bound socket (port 0 = a free one). Raises ConfigError naming the owner of a busy port and the remedy."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(512)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(f"port {port} is taken by {owner(port)}; stop that or choose another with --port {port + 1}") from None
        raise ConfigError(f"cannot listen on {host} port {port}: {error.strerror}; choose another --host or --port") from None
    return listener


def owner(port: int) -> str:
    """Who listens on a TCP port of this machine: a Headway server by its server.json, else the process found in /proc."""
    pid = _listening_pid(port)
    try:
        card = msgspec.json.decode((paths.serve_dir(port) / "server.json").read_bytes())
        if isinstance(card, dict) and card.get("pid") == pid:
            return f"headway serve {card.get('model')} (pid {pid}; stop it with: kill {pid})"
    except (OSError, msgspec.DecodeError):
        pass
    if pid is None:
        return "another user's process"
    try:
        command = (Path("/proc") / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        command = "?"
    return f"pid {pid} ({command[:80]})"


def _listening_pid(port: int) -> int | None:
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            lines = Path(table).read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            parts = line.split()
            if parts[3] == "0A" and int(parts[1].rpartition(":")[2], 16) == port:
                inodes.add(f"socket:[{parts[9]}]")
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if any(str(fd.readlink()) in inodes for fd in (folder / "fd").iterdir()):
                return int(folder.name)
        except OSError:
            continue
    return None
