"""The ASGI application: routes and what surrounds each request (guard, limits, errors, counts). Plain ASGI down to the socket.

A framework's per-request models would validate bodies twice and hide the transport whose buffer must be measured.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from importlib import resources
from typing import Any

import msgspec

from headway import __version__
from headway.core import fields
from headway.core.config import ServeConfig
from headway.core.errors import HeadwayError, InvalidRequest
from headway.server import metrics
from headway.server.board import Board
from headway.server.errors import HttpError, Problem, accident, full, problem_of, unavailable
from headway.server.exchange import ClientGone, Exchange, Receive, Scope, Send
from headway.server.guard import Guard, preflight_headers
from headway.server.plan import check_ids, plan_chat, plan_completion
from headway.server.promise import read_promise
from headway.server.protocol import Asked, read_chat, read_completion
from headway.server.served import ServedModel, find_model
from headway.server.stream import Generation

log = logging.getLogger("headway.server")
Handler = Callable[[Exchange], Awaitable[None]]
SAMPLE_S = 1.0
MAX_NAMES_LOGGED = 256


class Front:
    """State of the front process and its handlers. `fleet` is None while the engine loads."""

    def __init__(self, fleet: Any, models: dict[str, ServedModel], config: ServeConfig) -> None:
        self.fleet = fleet
        self.models = models
        self.config = config
        self.board = Board()
        self.draining = False
        self.loading = "the model is loading"
        self._guard = Guard(config.host, config.allow_hosts, config.cors, config.api_key)
        self._ignored_names: set[str] = set()
        self._sampler: asyncio.Task[None] | None = None
        self._page = resources.files("headway.server").joinpath("page.html").read_bytes()
        self._routes: dict[str, tuple[str, Handler]] = {
            "/": ("GET", self.page),
            "/health": ("GET", self.health),
            "/version": ("GET", self.version),
            "/stats": ("GET", self.stats),
            "/metrics": ("GET", self.metrics),
            "/tokenize": ("POST", self.tokenize),
            "/detokenize": ("POST", self.detokenize),
        }
        for prefix in ("", "/v1"):
            self._routes[prefix + "/models"] = ("GET", self.list_models)
            self._routes[prefix + "/chat/completions"] = ("POST", self.chat)
            self._routes[prefix + "/completions"] = ("POST", self.complete)

    # ---- ASGI ----------------------------------------------------------------------------------------------------------
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] == "http":
            await self._serve(Exchange(scope, receive, send))

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                self._sampler = asyncio.get_running_loop().create_task(self._sample())
                await send({"type": "lifespan.startup.complete"})
            else:
                if self._sampler is not None:
                    self._sampler.cancel()
                await send({"type": "lifespan.shutdown.complete"})
                return

    async def _sample(self) -> None:
        while True:
            await asyncio.sleep(SAMPLE_S)
            self.board.sample(self._fleet_stats())

    async def _serve(self, exchange: Exchange) -> None:
        problem: Problem | None = None
        try:
            self._guard.check(exchange)
            await self._route(exchange)(exchange)
        except ClientGone:
            self.board.replied(499, None)
            return
        except HeadwayError as error:
            problem = problem_of(error)
            if problem is None:
                log.exception("request %s failed", exchange.request_id)
                problem = accident(exchange.request_id)
        except Exception:
            log.exception("request %s failed", exchange.request_id)
            problem = accident(exchange.request_id)
        if problem is not None:
            self.board.replied(problem.status, problem.code or problem.type)
            await exchange.reply_problem(problem)
        else:
            self.board.replied(499 if exchange.gone else exchange.status, None)

    def _route(self, exchange: Exchange) -> Handler:
        path, method = exchange.path, exchange.method
        found = self._routes.get(path.rstrip("/") or "/")
        if found is None and path.startswith(("/v1/models/", "/models/")):
            found = ("GET", self.one_model)
        if found is None:
            raise HttpError(Problem(404, "not_found_error", f"there is no {path[:120]} here; GET / shows what is", None, "path_not_found"))
        allowed, handler = found
        if method == "OPTIONS" and b"origin" in exchange.headers:
            return self._preflight
        if method != allowed and not (allowed == "GET" and method == "HEAD"):
            headers = [(b"allow", b"GET, HEAD" if allowed == "GET" else b"POST")]
            raise HttpError(
                Problem(405, "invalid_request_error", f"{path} takes {allowed}, not {method[:20]}", None, "method_not_allowed", headers)
            )
        return handler

    async def _preflight(self, exchange: Exchange) -> None:
        await exchange.reply(200, b"", b"text/plain", preflight_headers(exchange))

    # ---- pages and facts -----------------------------------------------------------------------------------------------
    async def page(self, exchange: Exchange) -> None:
        policy = b"default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; frame-ancestors 'none'"
        headers = [(b"cache-control", b"no-cache"), (b"content-security-policy", policy), (b"x-content-type-options", b"nosniff")]
        await exchange.reply(200, self._page, b"text/html; charset=utf-8", headers)

    async def health(self, exchange: Exchange) -> None:
        ok, why = self.ready()
        if ok:
            await exchange.reply_json({"status": "ok"})
        else:
            body = unavailable(why, "unavailable").body() | {"status": "unavailable", "reason": why}
            await exchange.reply_json(body, 503, [(b"retry-after", b"1")])

    async def version(self, exchange: Exchange) -> None:
        await exchange.reply_json({"version": __version__})

    async def stats(self, exchange: Exchange) -> None:
        ok, why = self.ready()
        history = {"history": list(self.board.history)} if b"history" in exchange.query else {}
        body = {"kv_pages_total": 0, "kv_pages_used": 0, "kv_pages_cached": 0, "open_requests": 0, "queued_requests": 0, "engine_pids": []}
        body |= {"accuracy": self.config.accuracy, "policy": self.config.policy} | self._fleet_stats() | self.board.stats() | history
        await exchange.reply_json(body | {"healthy": ok, "health": why, "models": list(self.models), "version": __version__})

    async def metrics(self, exchange: Exchange) -> None:
        await exchange.reply(200, metrics.render(self.board, self._fleet_stats), metrics.CONTENT_TYPE)

    async def list_models(self, exchange: Exchange) -> None:
        await exchange.reply_json({"object": "list", "data": [_model_card(model) for model in self.models.values()]})

    async def one_model(self, exchange: Exchange) -> None:
        name = exchange.path.partition("/models/")[2]
        await exchange.reply_json(_model_card(find_model(self.models, name)))

    # ---- tokens --------------------------------------------------------------------------------------------------------
    async def tokenize(self, exchange: Exchange) -> None:
        body = await self._json(exchange)
        model = find_model(self.models, fields.text(body, "model"))
        special = fields.boolean(body, "parse_special")
        if body.get("messages") is not None:
            asked = read_chat({"messages": body["messages"]})
            if model.template is None:
                raise InvalidRequest(f"model {model.name} has no chat template: send 'content'", param="messages")
            tokens = await asyncio.to_thread(
                model.template.encode, asked.messages, None, fields.boolean(body, "add_generation_prompt", True)
            )
        else:
            content = body.get("content", body.get("prompt"))
            if not isinstance(content, str):
                raise InvalidRequest(f"'content' must be a string; got {fields.shown(content)}", param="content")
            tokens = await asyncio.to_thread(model.tokenizer.encode, content, special)
            if fields.boolean(body, "add_special") and model.bos_id is not None and tokens[:1] != [model.bos_id]:
                tokens = [model.bos_id, *tokens]
        await exchange.reply_json({"tokens": tokens, "count": len(tokens), "max_model_len": model.context_tokens})

    async def detokenize(self, exchange: Exchange) -> None:
        body = await self._json(exchange)
        model = find_model(self.models, fields.text(body, "model"))
        tokens = body.get("tokens")
        if not isinstance(tokens, list) or not fields.is_token_ids(tokens):
            raise InvalidRequest(f"'tokens' must be a list of token ids; got {fields.shown(tokens)}", param="tokens")
        await exchange.reply_json({"content": model.tokenizer.decode(check_ids(tokens, model, "tokens"))})

    # ---- generation ----------------------------------------------------------------------------------------------------
    async def chat(self, exchange: Exchange) -> None:
        await self._generate(exchange, self._run_chat)

    async def complete(self, exchange: Exchange) -> None:
        await self._generate(exchange, self._run_completion)

    async def _generate(self, exchange: Exchange, run: Callable[[Exchange, dict[str, Any]], Awaitable[None]]) -> None:
        """Counts the request as open from before its body is read, so that the limit also bounds memory for bodies."""
        if self.board.open_requests >= self.config.max_open_requests:
            raise HttpError(full(self.board.open_requests))
        self.board.open_requests += 1
        try:
            body = await self._json(exchange)
            await run(exchange, body)
        finally:
            self.board.open_requests -= 1

    async def _run_chat(self, exchange: Exchange, body: dict[str, Any]) -> None:
        asked = read_chat(body)
        model, slo = self._common(asked, exchange)
        plan = await plan_chat(asked, model, slo, self.config.extras)
        if self.config.log_prompts:
            log.info("%s messages %s", exchange.request_id, asked.messages)
        await Generation(plan, self._require_fleet(), self.board, exchange).run()

    async def _run_completion(self, exchange: Exchange, body: dict[str, Any]) -> None:
        asked = read_completion(body)
        model, slo = self._common(asked, exchange)
        plan = await plan_completion(asked, model, slo, self.config.extras)
        if self.config.log_prompts:
            log.info("%s prompts %s", exchange.request_id, asked.prompts)
        await Generation(plan, self._require_fleet(), self.board, exchange).run()

    def _common(self, asked: Asked, exchange: Exchange) -> tuple[ServedModel, Any]:
        for name in asked.ignored:
            if name not in self._ignored_names and len(self._ignored_names) < MAX_NAMES_LOGGED:
                self._ignored_names.add(name)
                log.warning("a client sends the unknown field %r; it is ignored (said once)", name)
        return find_model(self.models, asked.model), read_promise(asked.slo, exchange.headers)

    def _require_fleet(self) -> Any:
        ok, why = self.ready()
        if self.fleet is None or self.draining:
            raise HttpError(unavailable(why, "draining" if self.draining else "loading"))
        if not ok:
            raise HttpError(unavailable(why, "unhealthy"))
        return self.fleet

    def ready(self) -> tuple[bool, str]:
        """Whether new requests would be taken, and if not, why."""
        if self.draining:
            return False, "the server is shutting down; it finishes what runs and takes nothing new"
        if self.fleet is None:
            return False, self.loading
        healthy: tuple[bool, str] = self.fleet.health()
        return healthy

    def _fleet_stats(self) -> dict[str, Any]:
        stats: dict[str, Any] = {} if self.fleet is None else self.fleet.stats()
        return stats

    async def _json(self, exchange: Exchange) -> dict[str, Any]:
        raw = await exchange.body(self.config.max_body_bytes)
        try:
            parsed = msgspec.json.decode(raw)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:  # the latter for a string that is no UTF-8
            raise InvalidRequest(f"the body is not valid JSON: {error}") from None
        except RecursionError:
            raise InvalidRequest(f"the JSON body is nested deeper than {fields.JSON_DEPTH} levels") from None
        if not isinstance(parsed, dict):
            raise InvalidRequest(f"the body must be a JSON object; got {fields.shown(parsed)}")
        fields.check_depth(raw, parsed)
        return parsed


def _model_card(model: ServedModel) -> dict[str, Any]:
    created = model.created or int(time.time())
    return {"id": model.name, "object": "model", "created": created, "owned_by": "headway", "meta": model.meta}


def build_app(fleet: Any, models: dict[str, ServedModel], config: ServeConfig) -> Front:
    """The ASGI application over a started fleet (None: attach it later as `app.fleet`; until then 503 "loading")."""
    return Front(fleet, models, config)
