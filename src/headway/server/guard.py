"""Who may ask: Host header (DNS rebinding), Origin and CORS, API key (docs/server.md, "Safety"). Runs before a body is read."""

import base64
import binascii
import hmac
import ipaddress
from dataclasses import dataclass

from headway.server.errors import HttpError, Problem
from headway.server.exchange import Exchange

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})
OPEN_PATHS = frozenset({"/health", "/version"})
PAGE_PATHS = frozenset({"/", "/metrics", "/stats"})
_ANY_ADDRESS = frozenset({"0.0.0.0", "::", ""})


@dataclass(frozen=True, slots=True)
class Guard:
    """`host` is the bound address. `cors` names the one foreign origin that may call ("*" = any)."""

    host: str
    allow_hosts: tuple[str, ...] = ()
    cors: str | None = None
    api_key: str | None = None

    def check(self, exchange: Exchange) -> None:
        """Raises HttpError 403 (host, origin) or 401 (key). Adds CORS headers to the reply where they are due."""
        host = exchange.headers.get(b"host", b"").decode("latin-1").strip().lower()
        self._check_host(host)
        self._check_origin(exchange, host)
        if exchange.method != "OPTIONS" and exchange.path not in OPEN_PATHS:
            self._check_key(exchange)

    def _check_host(self, host: str) -> None:
        name = _without_port(host)
        if name in self.allow_hosts or host in self.allow_hosts:
            return
        if is_loopback(self.host):
            allowed = name in LOOPBACK_NAMES
        elif self.host in _ANY_ADDRESS:
            # A rebinding attack needs a name that the attacker controls; an address typed as such is none.
            allowed = name in LOOPBACK_NAMES or _is_address(name)
        else:
            allowed = name in (self.host.lower(), f"[{self.host.lower()}]")
        if not allowed:
            message = f"host {host[:80]!r} is not a name of this server; start it with --allow-host {name[:80] or 'NAME'} if it should be"
            raise HttpError(Problem(403, "permission_error", message, None, "host_not_allowed"))

    def _check_origin(self, exchange: Exchange, host: str) -> None:
        origin = exchange.headers.get(b"origin")
        if origin is None:
            return
        text = origin.decode("latin-1").strip().lower()
        if self.cors is not None and (self.cors == "*" or text == self.cors.lower().rstrip("/")):
            exchange.reply_headers += [(b"access-control-allow-origin", origin), (b"vary", b"Origin")]
            exchange.reply_headers.append(
                (b"access-control-expose-headers", b"x-request-id, x-slo-class, x-slo-ttft-ms, x-slo-tpot-ms, retry-after")
            )
        elif text not in (f"http://{host}", f"https://{host}"):
            message = f"pages of origin {text[:80]!r} may not use this server; start it with --cors {text[:80]} if they should"
            raise HttpError(Problem(403, "permission_error", message, None, "origin_not_allowed"))

    def _check_key(self, exchange: Exchange) -> None:
        if self.api_key is None:
            return
        given = _given_key(exchange.headers.get(b"authorization", b""))
        if not hmac.compare_digest(given, self.api_key.encode()):
            challenge = b'Basic realm="Headway", charset="UTF-8"' if exchange.path in PAGE_PATHS else b"Bearer"
            message = "a key is needed: send 'Authorization: Bearer KEY', or the key as the password of HTTP Basic"
            raise HttpError(Problem(401, "authentication_error", message, None, "invalid_api_key", [(b"www-authenticate", challenge)]))


def preflight_headers(exchange: Exchange) -> list[tuple[bytes, bytes]]:
    """Headers of the answer to an OPTIONS request of an allowed origin."""
    wanted = exchange.headers.get(b"access-control-request-headers", b"authorization, content-type")
    return [
        (b"access-control-allow-methods", b"GET, HEAD, POST, OPTIONS"),
        (b"access-control-allow-headers", wanted),
        (b"access-control-max-age", b"600"),
    ]


def is_loopback(host: str) -> bool:
    """Whether an address to bind can be reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host[: host.find("]") + 1]
    return host.partition(":")[0]


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True


def _given_key(authorization: bytes) -> bytes:
    scheme, _, value = authorization.strip().partition(b" ")
    if scheme.lower() == b"bearer":
        return value.strip()
    if scheme.lower() == b"basic":
        try:
            return base64.b64decode(value.strip(), validate=True).partition(b":")[2]
        except (binascii.Error, ValueError):
            return b""
    return b""
