"""What latency a client asked to be promised, and the headers that say what was granted (docs/server.md, "Promises")."""

from collections.abc import Mapping

from headway.core.slo import Slo, from_request, resolve


def read_promise(body: Mapping[str, object], headers: Mapping[bytes, bytes]) -> Slo:
    """The complete Slo of a request: body `slo`, then headers part by part, then the class default. Raises InvalidRequest."""
    relevant = {
        name.decode("latin-1"): value.decode("latin-1").strip()
        for name, value in headers.items()
        if name.startswith((b"x-slo-", b"x-llm-d-slo-"))
    }
    return resolve(from_request(dict(body) or None, relevant))


def granted_headers(slo: Slo) -> list[tuple[bytes, bytes]]:
    """Reply headers that say what was granted; parts that promise nothing have no header."""
    out = [(b"x-slo-class", slo.cls.encode())]
    for name, seconds in ((b"x-slo-ttft-ms", slo.ttft_s), (b"x-slo-tpot-ms", slo.tpot_s), (b"x-slo-e2e-ms", slo.e2e_s)):
        if seconds is not None:
            out.append((name, f"{seconds * 1e3:.6g}".encode()))
    return out
