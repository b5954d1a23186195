"""The front process: binds the port, starts the engine, says where it is, and shuts down without losing an answer."""

import asyncio
import contextlib
import dataclasses
import os
import shlex
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import uvicorn

from headway.core import durable, paths
from headway.core.config import ServeConfig
from headway.core.errors import HeadwayError
from headway.server.app import Front, build_app
from headway.server.connection import FrontConnection
from headway.server.guard import is_loopback
from headway.server.port import listen
from headway.server.served import ServedModel

if TYPE_CHECKING:
    from headway.models.model import Model

LAST_BYTES_S = 3.0
StartFleet = Callable[[ServeConfig, Callable[[str, float], None]], Any]


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: shutting down is decided here."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def serve(config: ServeConfig) -> int:
    """Serves until a signal; returns the exit status. Prints the start lines; publishes `server.json`."""
    for name in ("RAYON_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        listener = listen(config.host, config.port)
        with contextlib.closing(listener):
            config = dataclasses.replace(config, port=listener.getsockname()[1])
            model = _open(config)
            return asyncio.run(serve_on(listener, {model.name: model}, config, _start_local))
    except HeadwayError as error:
        print(f"headway serve: {error}", file=sys.stderr)
        return 2


async def _start_local(config: ServeConfig, on_progress: Callable[[str, float], None]) -> Any:
    from headway.fleet.local import LocalFleet

    return await LocalFleet.start(config, on_progress)


async def serve_on(listener: socket.socket, models: dict[str, ServedModel], config: ServeConfig, start_fleet: StartFleet) -> int:
    """`serve` with its parts given: the socket answers (503 "loading") before the fleet is up."""
    app = build_app(None, models, config)
    options = {"log_config": None, "access_log": False, "loop": "asyncio", "lifespan": "on", "ws": "none", "proxy_headers": False}
    server = _Server(uvicorn.Config(app, http=FrontConnection, server_header=False, **options))  # type: ignore[arg-type]
    stops: asyncio.Queue[int] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stops.put_nowait, number)
    http = asyncio.ensure_future(server.serve(sockets=[listener]))
    stop = asyncio.ensure_future(stops.get())
    fleet = None
    starting = asyncio.ensure_future(start_fleet(config, lambda what, done: _progress(app, what, done)))
    card = paths.serve_dir(config.port) / "server.json"
    try:
        await asyncio.wait((starting, stop, http), return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            return 130
        fleet = starting.result()
        _attach(app, fleet)
        durable.make_dirs(card.parent)
        durable.publish(card, msgspec.json.encode(_card(config, models)), durable=False, mode=0o600)
        _say_started(app, config)
        await asyncio.wait((stop, http), return_when=asyncio.FIRST_COMPLETED)
        await _drain(app, config.drain_s, stops)
        return 0
    finally:
        card.unlink(missing_ok=True)
        if not starting.done():
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
        if fleet is not None:
            await fleet.stop()
        stop.cancel()
        server.should_exit = True
        # The last error events leave now; a connection that does not take them is not waited for.
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(http), LAST_BYTES_S)
        server.force_exit = True
        await asyncio.gather(http, return_exceptions=True)


async def _drain(app: Front, seconds: float, stops: "asyncio.Queue[int]") -> None:
    """Takes nothing new and waits for what runs; a second signal ends the wait."""
    app.draining = True
    again = asyncio.ensure_future(stops.get())
    drained = asyncio.ensure_future(app.fleet.drain(seconds))
    deadline = time.monotonic() + seconds
    try:
        while app.board.open_requests and time.monotonic() < deadline and not again.done():
            left = deadline - time.monotonic()
            print(
                f"\rfinishing {app.board.open_requests} requests, {left:.0f} s left; Ctrl-C again stops now ",
                end="",
                file=sys.stderr,
                flush=True,
            )
            await asyncio.wait(
                (again, drained), timeout=min(1.0, max(left, 0.0)) if not drained.done() else 0.05, return_when=asyncio.FIRST_COMPLETED
            )
            if drained.done():
                await asyncio.sleep(0.02)
    finally:
        again.cancel()
        drained.cancel()
        await asyncio.gather(again, drained, return_exceptions=True)
    print(
        f"\nstopping{f'; {app.board.open_requests} requests get an error' if app.board.open_requests else ''}", file=sys.stderr, flush=True
    )


def _attach(app: Front, fleet: Any) -> None:
    for spec in fleet.models():
        for model in [found for found in app.models.values() if spec["model"] in (found.name, found.engine_name)]:
            meta = model.meta | {"accuracy": spec["accuracy"], "kv_dtype": spec["kv_dtype"], "context": spec["context_tokens"]}
            room = spec["pages"] * spec["page_tokens"]
            app.models[model.name] = dataclasses.replace(model, context_tokens=spec["context_tokens"], pool_tokens=room, meta=meta)
    app.fleet = fleet


def _progress(app: Front, what: str, done: float) -> None:
    app.loading = f"loading: {what} {done:.0%}"
    end = "\n" if done >= 1 else ""
    print(f"\r\033[K{app.loading}" if sys.stderr.isatty() else "", end=end if sys.stderr.isatty() else "", file=sys.stderr, flush=True)


def _card(config: ServeConfig, models: dict[str, ServedModel]) -> dict[str, Any]:
    return {"pid": os.getpid(), "url": url_of(config), "model": next(iter(models))}


def url_of(config: ServeConfig) -> str:
    """Where a client of this machine finds the server."""
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(config.host, f"[{config.host}]" if ":" in config.host else config.host)
    return f"http://{host}:{config.port}"


def _say_started(app: Front, config: ServeConfig) -> None:
    url = url_of(config)
    model = next(iter(app.models.values()))
    key = ' -H "Authorization: Bearer $HEADWAY_API_KEY"' if config.api_key else ""
    body = f'{{"model":"{model.name}","messages":[{{"role":"user","content":"Hello!"}}]}}'
    print(f"Headway serves {model.name} at {url}   (chat and dashboard: open it in a browser)")
    print(f"  accuracy {config.accuracy} (KV {model.meta.get('kv_dtype', '?')}), policy {config.policy}, law {law_text(app.fleet.stats())}")
    print(f"  memory   {config.kv_memory_bytes >> 20} MiB for {model.pool_tokens} tokens of KV; context {model.context_tokens} tokens")
    print(f"  curl     curl {url}/v1/chat/completions -H 'content-type: application/json'{key} -d {shlex.quote(body)}", flush=True)
    if not is_loopback(config.host) and config.api_key is None:
        print(f"warning: {config.host} can be reached from other machines and no --api-key is set", file=sys.stderr, flush=True)


def law_text(stats: dict[str, Any]) -> str:
    """How the law that promises are quoted from was made, for the start lines."""
    law = next(iter(stats["law"].values()), None)
    if law is None:
        return "none yet"
    error = f"mean error {law['fit']['mape']:.0%}"
    if law["made_by"].startswith("quick"):
        return f"{law['made_by']} ({error}, corrected while serving; `headway calibrate` measures a better one)"
    return f"calibrated ({error})"


def _open(config: ServeConfig) -> ServedModel:
    from headway.models.model import open_model

    return served(open_model(config.model), config)


def served(model: "Model", config: ServeConfig) -> ServedModel:
    """A model file as the front needs it: tokenizer, template (the file's, or `--chat-template`) and limits."""
    from headway.models.chat import ChatTemplate
    from headway.models.tokenizer import DetokenizeStream

    tokenizer = model.tokenizer
    template = model.chat_template
    if config.chat_template is not None:
        template = ChatTemplate(Path(config.chat_template).read_text(), tokenizer)
    context = min(config.context_tokens or model.config.context_tokens, model.config.context_tokens)
    shown = model.describe()
    meta = {
        "context": context,
        "parameters": shown["parameters"],
        "quantization": max(shown["bytes_by_type"], key=shown["bytes_by_type"].get),
    }
    meta |= {"accuracy": config.accuracy, "kv_dtype": config.kv_dtype, "chat": template is not None}
    return ServedModel(
        name=model.name,
        engine_name=config.model,
        tokenizer=tokenizer,
        template=template,
        detokenizer=lambda: DetokenizeStream(tokenizer),
        context_tokens=context,
        pool_tokens=context,
        created=int(time.time()),
        shows_tools=template is not None and "tools" in template.source,
        bos_id=tokenizer.bos_id,
        meta=meta,
    )
