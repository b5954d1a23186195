"""Named test double: a streaming OpenAI-compatible server with a fixed token schedule. The real one is in tests/server.

`python tests/bench/mock_server.py PORT '{"ttft_ms": 20, ...}'` or `async with MockServer(Behaviour(...)) as url`.
"""

import asyncio
import json
import sys
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Behaviour:
    """What the double does. `refuse`, `die`: every n-th request (0 = none) is answered 429 / cut after `die_after` tokens."""

    ttft_ms: float = 5.0
    itl_ms: float = 1.0
    tokens_per_chunk: int = 1
    usage: str = "continuous"  # continuous | final | none
    role_chunk: bool = True
    keep_alive: bool = False
    crlf: bool = False
    refuse: int = 0
    die: int = 0
    die_after: int = 2
    error_event: int = 0
    never_end: int = 0
    split_writes: bool = False
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    seen: int = 0


class MockServer:
    def __init__(self, behaviour: Behaviour, port: int = 0) -> None:
        self.behaviour = behaviour
        self.port = port
        self.tasks: set[asyncio.Task[Any]] = set()

    async def __aenter__(self) -> str:
        self.server = await asyncio.start_server(self.handle, "127.0.0.1", self.port)
        self.port = self.server.sockets[0].getsockname()[1]
        return f"http://127.0.0.1:{self.port}/v1"

    async def __aexit__(self, *exc: object) -> None:
        self.server.close()
        for task in self.tasks:
            task.cancel()

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.tasks.add(task)
        try:
            await self.answer(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self.tasks.discard(task)
            writer.close()

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        path = head.split(" ", 2)[1]
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head.split("\r\n")[1:])}
        if path == "/health":
            await self.plain(writer, 200, {"status": "ok"})
            return None
        if path == "/v1/models":
            await self.plain(writer, 200, {"object": "list", "data": [{"id": "mock", "object": "model"}]})
            return None
        body = json.loads(await reader.readexactly(int(headers.get("content-length", "0"))) or b"{}")
        if path not in ("/v1/chat/completions", "/v1/completions"):
            return await self.plain(
                writer, 404, {"error": {"message": f"no {path}", "type": "not_found_error", "param": None, "code": None}}
            )
        do = self.behaviour
        do.seen += 1
        do.bodies.append(body)
        do.headers.append(headers)
        if do.refuse and do.seen % do.refuse == 0:
            quote = {"ttft_s": 9.0, "tpot_s": 0.1, "after_s": 1.0}
            error = {
                "message": "not now",
                "type": "rate_limit_error",
                "param": None,
                "code": "slo_unattainable",
                "headway": {"quote": quote},
            }
            return await self.plain(writer, 429, {"error": error})
        await self.stream(writer, body, path.endswith("/chat/completions"), do.seen)
        return None

    async def plain(self, writer: asyncio.StreamWriter, status: int, body: dict[str, Any]) -> None:
        payload = json.dumps(body).encode()
        writer.write(f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {len(payload)}\r\n\r\n".encode() + payload)
        await writer.drain()

    async def stream(self, writer: asyncio.StreamWriter, body: dict[str, Any], chat: bool, number: int) -> None:
        do = self.behaviour
        line = "\r\n" if do.crlf else "\n"

        async def send(text: str) -> None:
            payload = text.replace("\n", line).encode()
            message = f"{len(payload):x}\r\n".encode() + payload + b"\r\n"
            if do.split_writes:
                for at in range(0, len(message), 7):
                    writer.write(message[at : at + 7])
                    await writer.drain()
                    await asyncio.sleep(0)
            else:
                writer.write(message)
            await writer.drain()

        def event(choices: list[dict[str, Any]], usage: int | None) -> str:
            counts = None if usage is None else {"prompt_tokens": 7, "completion_tokens": usage, "total_tokens": 7 + usage}
            kind = "chat.completion.chunk" if chat else "text_completion"
            chunk: dict[str, Any] = {
                "id": f"m-{number}",
                "object": kind,
                "created": 1,
                "model": "mock",
                "choices": choices,
                "usage": counts,
            }
            return f"data: {json.dumps(chunk)}\n\n"

        def choice(text: str, finish: str | None = None) -> list[dict[str, Any]]:
            part: dict[str, Any] = {"delta": {"content": text} if text else {}} if chat else {"text": text}
            return [{"index": 0, **part, "finish_reason": finish}]

        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n")
        if chat and do.role_chunk:
            role = [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]
            await send(event(role, 0 if do.usage == "continuous" else None))
        await asyncio.sleep(do.ttft_ms / 1e3)
        total, sent = int(body.get("max_tokens", 4)), 0
        while sent < total:
            if sent:
                await asyncio.sleep(do.itl_ms * do.tokens_per_chunk / 1e3)
            if do.die and number % do.die == 0 and sent >= do.die_after:
                return
            if do.error_event and number % do.error_event == 0 and sent >= do.die_after:
                await send('data: {"error": {"message": "gone", "type": "server_error", "param": null, "code": "engine_died"}}\n\n')
                writer.write(b"0\r\n\r\n")
                return
            if do.never_end and number % do.never_end == 0 and sent >= do.die_after:
                await asyncio.sleep(3600)
            if do.keep_alive:
                await send(": keep-alive\n\n")
            size = min(do.tokens_per_chunk, total - sent)
            sent += size
            await send(event(choice(" tok" * size), sent if do.usage == "continuous" else None))
        await send(event(choice("", "length"), sent if do.usage == "continuous" else None))
        if do.usage != "none":
            await send(event([], sent))
        await send("data: [DONE]\n\n")
        writer.write(b"0\r\n\r\n")
        await writer.drain()


async def main() -> None:
    behaviour = Behaviour(**json.loads(sys.argv[2])) if len(sys.argv) > 2 else Behaviour()
    async with MockServer(behaviour, int(sys.argv[1])):
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
