"""Servers that run on this machine, found through the server.json that each publishes in state/serve/<port>."""

import json
import os
import socket
from dataclasses import dataclass
from urllib.parse import urlsplit

from headway.core.paths import home_state

ANSWER_WITHIN_S = 1.0


@dataclass(frozen=True, slots=True)
class Server:
    """What server.json says. `url` has no path."""

    pid: int
    url: str
    model: str


def live_servers() -> list[Server]:
    """Newest first. A file left by a killed server does not count: its process must live and its port must accept."""
    found = []
    for path in (home_state() / "serve").glob("*/server.json"):
        try:
            entry = json.loads(path.read_text())
            server = Server(int(entry["pid"]), str(entry["url"]).rstrip("/"), str(entry.get("model", "")))
            published_s = path.stat().st_mtime
        except (OSError, ValueError, KeyError, TypeError):
            continue  # half a file of a crashed server, or one that is just going away: not live either way
        if _alive(server.pid) and _accepts(server.url):
            found.append((published_s, server))
    return [server for _, server in sorted(found, key=lambda pair: pair[0], reverse=True)]


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _accepts(url: str) -> bool:
    parts = urlsplit(url)
    try:
        with socket.create_connection((parts.hostname or "127.0.0.1", parts.port or 80), timeout=ANSWER_WITHIN_S):
            return True
    except OSError:
        return False
