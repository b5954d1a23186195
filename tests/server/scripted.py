"""Named test doubles (`ByteTokenizer`, `ByteStream`, `PlainTemplate`) and a real uvicorn server around a scripted fleet."""

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterator
from typing import Any

import uvicorn
from tests.fleet.doubles import ScriptedFleet

from headway.core.config import ServeConfig
from headway.server.app import Front, build_app
from headway.server.connection import FrontConnection
from headway.server.served import ServedModel

CONTEXT_TOKENS = 512


class ByteTokenizer:
    """TEST DOUBLE: a token is a byte; 256 is BOS, 257 the end of a turn (no text)."""

    vocab_size = 258

    def encode(self, text: str, parse_special: bool = False) -> list[int]:
        return list(text.encode())

    def decode(self, ids: list[int]) -> str:
        return bytes(id for id in ids if id < 256).decode("utf-8", "replace")

    def token_bytes(self, id: int) -> bytes:
        return bytes([id]) if id < 256 else b""


class ByteStream:
    """TEST DOUBLE of `DetokenizeStream`: holds bytes back until they are a whole character."""

    def __init__(self) -> None:
        self._held = b""

    def push(self, id: int) -> str:
        self._held += bytes([id]) if id < 256 else b""
        try:
            text = self._held.decode()
        except UnicodeDecodeError as error:
            if error.reason == "unexpected end of data":
                return ""
            text = self._held.decode("utf-8", "replace")
        self._held = b""
        return text

    def flush(self) -> str:
        text, self._held = self._held.decode("utf-8", "replace"), b""
        return text


class PlainTemplate:
    """TEST DOUBLE of `ChatTemplate`: `role: content` lines."""

    def encode(
        self, messages: list[dict[str, Any]], tools: Any = None, add_generation_prompt: bool = True, kwargs: Any = None
    ) -> list[int]:
        text = "".join(f"{message['role']}: {message['content']}\n" for message in messages)
        return list((text + ("assistant:" if add_generation_prompt else "")).encode())


def byte_model(name: str = "tiny", **changes: Any) -> ServedModel:
    values: dict[str, Any] = {
        "name": name,
        "tokenizer": ByteTokenizer(),
        "template": PlainTemplate(),
        "detokenizer": ByteStream,
        "context_tokens": CONTEXT_TOKENS,
        "pool_tokens": 100 * 16,
        "bos_id": 256,
        "aliases": ("small",),
        "meta": {"accuracy": "fast"},
    }
    return ServedModel(**(values | changes))


class Running:
    """A server of scripted answers on a free port of 127.0.0.1, in a thread of its own."""

    def __init__(self, fleet: ScriptedFleet, app: Front, port: int, loop: asyncio.AbstractEventLoop) -> None:
        self.fleet = fleet
        self.app = app
        self.port = port
        self.loop = loop
        self.url = f"http://127.0.0.1:{port}"

    def call(self, function: Any, *arguments: Any) -> Any:
        """Runs a function on the server's loop and returns its result."""

        async def inside() -> Any:
            return function(*arguments)

        return asyncio.run_coroutine_threadsafe(inside(), self.loop).result(10)

    def until(self, condition: Any, what: str, seconds: float = 10.0) -> None:
        """Waits until a condition holds on the server's loop."""

        async def inside() -> None:
            async with asyncio.timeout(seconds):
                while not condition():
                    await asyncio.sleep(0.005)

        try:
            asyncio.run_coroutine_threadsafe(inside(), self.loop).result(seconds + 5)
        except TimeoutError:
            raise AssertionError(f"did not happen in {seconds} s: {what}") from None


@contextlib.contextmanager
def serving(fleet: ScriptedFleet, models: dict[str, ServedModel] | None = None, **settings: Any) -> Iterator[Running]:
    """A real uvicorn server over a scripted fleet; settings are ServeConfig's."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(128)
    port = listener.getsockname()[1]
    app = build_app(fleet, models or {"tiny": byte_model()}, ServeConfig(port=port, **settings))
    config = uvicorn.Config(
        app, http=FrontConnection, ws="none", log_config=None, access_log=False, loop="asyncio", lifespan="on", proxy_headers=False
    )
    server = uvicorn.Server(config)
    ready = threading.Event()
    loops: list[asyncio.AbstractEventLoop] = []

    async def main() -> None:
        loops.append(asyncio.get_running_loop())
        task = asyncio.ensure_future(server.serve(sockets=[listener]))
        while not server.started and not task.done():
            await asyncio.sleep(0.005)
        ready.set()
        await task

    thread = threading.Thread(target=lambda: asyncio.run(main()), daemon=True)
    thread.start()
    assert ready.wait(20)
    try:
        yield Running(fleet, app, port, loops[0])
    finally:
        server.should_exit = True
        server.force_exit = True
        thread.join(20)
        assert not thread.is_alive(), "the server did not stop"
