"""Workflow files: a strict subset of cbx/1 (docs/bench.md), read into frozen dataclasses.

Strict because a mistyped key in a benchmark is a wrong result nobody notices: unknown keys name the nearest known one,
duplicate keys and YAML aliases are errors. Knows nothing of HTTP or processes.
"""

import difflib
from collections.abc import Hashable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast, get_args

import yaml

from headway.bench.quantities import duration_s, format_duration, rate_per_s, share
from headway.core.errors import ConfigError
from headway.core.slo import Slo, SloClass

SCHEMA = "cbx/1"
MAX_BYTES = 1 << 20
Kind = Literal["chat", "completion"]
Arrival = Literal["poisson", "constant", "closed"]

# Part of cbx/1 but not of this slice: named, so that nobody thinks they were honoured.
_LATER = {
    "": {"machine", "workflow", "sharing", "gates"},
    "run": {"repeats", "order", "scale"},
    "services": {"threads", "group"},
    "apps": {"chunk", "steps", "trace", "tools", "entry", "cmd", "events"},
    "load": {"trace", "cv"},
}


@dataclass(frozen=True, slots=True)
class Launch:
    """How a service is started: `cmd` (with `{port}`), and the path that answers 200 once it is ready."""

    cmd: str
    ready_path: str = "/health"
    ready_timeout_s: float = 120.0


@dataclass(frozen=True, slots=True)
class Service:
    """An OpenAI-compatible server: started by us (`launch`) or somebody else's (`url`, never started, never stopped)."""

    name: str
    model: str = ""
    url: str = ""
    launch: Launch | None = None
    api: str = "openai"


@dataclass(frozen=True, slots=True)
class Data:
    """Where prompts come from: a built-in source and the wanted prompt length in tokens (approximate; the reply's usage counts)."""

    prompts: str = "builtin:questions"
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class Load:
    """`poisson` and `constant`: open loop at `rate_per_s`, up to `requests` (0 = until run.max). `closed`: that many clients."""

    arrival: Arrival
    rate_per_s: float = 0.0
    requests: int = 0
    closed: int = 0
    think_s: float = 0.0


@dataclass(frozen=True, slots=True)
class OutputLength:
    """Tokens asked for, drawn evenly from [low, high] per request; `ignore_eos` makes the server really write them."""

    low: int
    high: int
    ignore_eos: bool = False


@dataclass(frozen=True, slots=True)
class App:
    name: str
    kind: Kind
    service: str
    load: Load
    output: OutputLength
    slo: Slo
    data: Data = field(default_factory=Data)
    target: float = 0.95


@dataclass(frozen=True, slots=True)
class Run:
    """`max_s`: arrivals end here. `drain_s`: how long unfinished requests may go on after it. `max_inflight`: per app."""

    warmup_s: float = 0.0
    max_s: float = 60.0
    drain_s: float = 30.0
    max_inflight: int = 512


@dataclass(frozen=True, slots=True)
class Workflow:
    name: str
    seed: int
    run: Run
    services: dict[str, Service]
    apps: dict[str, App]


# ---- reading ------------------------------------------------------------------------------------------------------------
class _StrictLoader(yaml.SafeLoader):
    """Safe YAML without duplicate keys, and without aliases (a few lines of them expand to gigabytes)."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            loader: Any = self  # PyYAML's parser has no types
            mark = loader.peek_event().start_mark
            raise ConfigError(f"line {mark.line + 1}: YAML aliases are not allowed in a workflow; write the value out")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, object]:
        seen: set[Hashable] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise ConfigError(f"line {key_node.start_mark.line + 1}: a key must be a word, not {key!r}")
            if key in seen:
                raise ConfigError(f"line {key_node.start_mark.line + 1}: the key {key!r} is there twice; remove one")
            seen.add(key)
        return super().construct_mapping(node, deep)


def load_file(path: Path) -> Workflow:
    """Reads a workflow file. Raises ConfigError naming the file and the place."""
    try:
        text = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read the workflow {path}: {error.strerror}; check the path") from error
    try:
        return parse(text)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def parse(text: str | bytes) -> Workflow:
    """Reads a workflow from YAML text. Raises ConfigError with the place and what would be right."""
    if len(text) > MAX_BYTES:
        raise ConfigError(f"a workflow of {len(text)} bytes; the limit is {MAX_BYTES}")
    try:
        plain = yaml.load(text, Loader=_StrictLoader)
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise ConfigError(f"not readable as YAML: {' '.join(str(error).split())[:300]}") from error
    return from_plain(plain)


def from_plain(plain: object) -> Workflow:
    """Checks a parsed workflow. Raises ConfigError."""
    top = _mapping(plain, "the workflow", {"schema", "name", "seed", "run", "services", "apps"}, later="")
    if top.get("schema") != SCHEMA:
        raise ConfigError(f"schema: {top.get('schema')!r}; this version reads schema: {SCHEMA}")
    services = {name: _service(name, value) for name, value in _named(top, "services").items()}
    apps = {name: _app(name, value, services) for name, value in _named(top, "apps").items()}
    return Workflow(
        name=_text(top.get("name", "unnamed"), "name"),
        seed=_integer(top.get("seed", 0), "seed", low=0),
        run=_run(top.get("run", {})),
        services=services,
        apps=apps,
    )


def _run(value: object) -> Run:
    plain = _mapping(value, "run", {"warmup", "max", "drain", "max_inflight"}, later="run")
    defaults = Run()
    run = Run(
        warmup_s=duration_s(plain["warmup"], "run.warmup") if "warmup" in plain else defaults.warmup_s,
        max_s=duration_s(plain["max"], "run.max") if "max" in plain else defaults.max_s,
        drain_s=duration_s(plain["drain"], "run.drain") if "drain" in plain else defaults.drain_s,
        max_inflight=_integer(plain.get("max_inflight", defaults.max_inflight), "run.max_inflight", low=1),
    )
    if run.max_s <= 0 or run.warmup_s >= run.max_s:
        raise ConfigError(f"run: max ({run.max_s} s) must be above 0 and above warmup ({run.warmup_s} s)")
    return run


def _service(name: str, value: object) -> Service:
    where = f"services.{name}"
    plain = _mapping(value, where, {"api", "url", "model", "launch"}, later="services")
    if plain.get("api", "openai") != "openai":
        raise ConfigError(f"{where}.api: {plain['api']!r}; this version drives `openai` servers only")
    if ("url" in plain) == ("launch" in plain):
        raise ConfigError(f"{where}: give either launch (a command we start) or url (a running server)")
    launch = None
    if "launch" in plain:
        start = _mapping(plain["launch"], f"{where}.launch", {"cmd", "ready"})
        if "cmd" not in start:
            raise ConfigError(f'{where}.launch: cmd is missing; for example cmd: "headway serve smollm2-135m --port {{port}}"')
        ready = _mapping(start.get("ready", {}), f"{where}.launch.ready", {"http", "timeout"})
        timeout = duration_s(ready["timeout"], f"{where}.launch.ready.timeout") if "timeout" in ready else 120.0
        launch = Launch(
            _text(start["cmd"], f"{where}.launch.cmd"), _text(ready.get("http", "/health"), f"{where}.launch.ready.http"), timeout
        )
    url = _text(plain["url"], f"{where}.url").rstrip("/") if "url" in plain else ""
    if url and not url.startswith("http://"):
        raise ConfigError(f"{where}.url: {url!r}; only http:// URLs are driven (the stamps must not include TLS)")
    return Service(name, _text(plain.get("model", ""), f"{where}.model"), url, launch)


def _app(name: str, value: object, services: dict[str, Service]) -> App:
    where = f"apps.{name}"
    plain = _mapping(value, where, {"kind", "service", "data", "load", "output", "slo", "class"}, later="apps")
    for key in ("kind", "service", "load", "output"):
        if key not in plain:
            raise ConfigError(f"{where}: {key} is missing")
    kind = _choice(plain["kind"], f"{where}.kind", get_args(Kind))
    service = _choice(plain["service"], f"{where}.service", tuple(services))
    cls = cast(SloClass, _choice(plain.get("class", "interactive"), f"{where}.class", get_args(SloClass)))
    slo_plain = _mapping(plain.get("slo", {}), f"{where}.slo", {"ttft", "tpot", "e2e", "target"})
    parts = {part: duration_s(slo_plain[part], f"{where}.slo.{part}") for part in ("ttft", "tpot", "e2e") if part in slo_plain}
    for part, seconds in parts.items():
        if not 0 < seconds <= 86400:
            raise ConfigError(f"{where}.slo.{part}: {slo_plain[part]!r} must be above 0 and at most 24 h")
    return App(
        name=name,
        kind=cast(Kind, kind),
        service=service,
        load=_load(plain["load"], f"{where}.load"),
        output=_output(plain["output"], f"{where}.output"),
        slo=Slo(parts.get("ttft"), parts.get("tpot"), parts.get("e2e"), cls),
        data=_data(plain.get("data", {}), f"{where}.data"),
        target=share(slo_plain["target"], f"{where}.slo.target") if "target" in slo_plain else 0.95,
    )


def _data(value: object, where: str) -> Data:
    plain = _mapping(value, where, {"prompts", "tokens"})
    return Data(
        _text(plain.get("prompts", "builtin:questions"), f"{where}.prompts"), _integer(plain.get("tokens", 0), f"{where}.tokens", 0)
    )


def _load(value: object, where: str) -> Load:
    plain = _mapping(value, where, {"arrival", "rate", "requests", "closed", "think"}, later="load")
    requests = _integer(plain.get("requests", 0), f"{where}.requests", low=0)
    if "closed" in plain:
        wrong = [key for key in ("arrival", "rate") if key in plain and plain[key] != "closed"]
        if wrong:
            raise ConfigError(f"{where}: a closed loop has no {wrong[0]}; it sends when a client is free")
        think = duration_s(plain["think"], f"{where}.think") if "think" in plain else 0.0
        return Load("closed", 0.0, requests, _integer(plain["closed"], f"{where}.closed", low=1), think)
    arrival = cast(Arrival, _choice(plain.get("arrival", "poisson"), f"{where}.arrival", ("poisson", "constant")))
    if "think" in plain:
        raise ConfigError(f"{where}: think belongs to closed loops; an open loop has its rate")
    if "rate" not in plain:
        raise ConfigError(f"{where}: rate is missing, for example rate: 0.5/s")
    return Load(arrival, rate_per_s(plain["rate"], f"{where}.rate"), requests)


def _output(value: object, where: str) -> OutputLength:
    plain = _mapping(value, where, {"tokens", "ignore_eos"})
    tokens = plain.get("tokens")
    if isinstance(tokens, list) and len(tokens) == 2:
        low, high = (_integer(item, f"{where}.tokens", low=1) for item in tokens)
    else:
        low = high = _integer(tokens, f"{where}.tokens", low=1)
    if low > high:
        raise ConfigError(f"{where}.tokens: [{low}, {high}] has its ends the wrong way round")
    ignore_eos = plain.get("ignore_eos", False)
    if not isinstance(ignore_eos, bool):
        raise ConfigError(f"{where}.ignore_eos: {ignore_eos!r}; write true or false")
    return OutputLength(low, high, ignore_eos)


# ---- writing ------------------------------------------------------------------------------------------------------------
def to_plain(workflow: Workflow) -> dict[str, object]:
    """The resolved workflow in its own file format; `from_plain(to_plain(w)) == w`."""
    services: dict[str, object] = {}
    for service in workflow.services.values():
        entry: dict[str, object] = {"api": service.api, **({"model": service.model} if service.model else {})}
        if service.launch is None:
            entry["url"] = service.url
        else:
            ready = {"http": service.launch.ready_path, "timeout": format_duration(service.launch.ready_timeout_s)}
            entry["launch"] = {"cmd": service.launch.cmd, "ready": ready}
        services[service.name] = entry
    run = workflow.run
    times = {"warmup": run.warmup_s, "max": run.max_s, "drain": run.drain_s}
    return {
        "schema": SCHEMA,
        "name": workflow.name,
        "seed": workflow.seed,
        "run": {**{key: format_duration(value) for key, value in times.items()}, "max_inflight": run.max_inflight},
        "services": services,
        "apps": {app.name: _app_plain(app) for app in workflow.apps.values()},
    }


def _app_plain(app: App) -> dict[str, object]:
    load: dict[str, object] = {"requests": app.load.requests} if app.load.requests else {}
    if app.load.arrival == "closed":
        load |= {"closed": app.load.closed, "think": format_duration(app.load.think_s)}
    else:
        load |= {"arrival": app.load.arrival, "rate": f"{app.load.rate_per_s:.17g}/s"}
    slo = {key: format_duration(value) for key in ("ttft", "tpot", "e2e") if (value := getattr(app.slo, f"{key}_s")) is not None}
    return {
        "kind": app.kind,
        "service": app.service,
        "data": {"prompts": app.data.prompts, "tokens": app.data.tokens},
        "load": load,
        "output": {"tokens": [app.output.low, app.output.high], "ignore_eos": app.output.ignore_eos},
        "slo": {**slo, "target": app.target},
        "class": app.slo.cls,
    }


def dump(workflow: Workflow) -> str:
    """YAML text of the resolved workflow."""
    return yaml.safe_dump(to_plain(workflow), sort_keys=False, width=140)


# ---- checks -------------------------------------------------------------------------------------------------------------
def _mapping(value: object, where: str, known: set[str], later: str | None = None) -> dict[str, object]:
    if not isinstance(value, dict):
        raise ConfigError(f"{where}: expected a mapping with the keys {', '.join(sorted(known))}, got {value!r:.80}")
    for key in value:
        if key in known:
            continue
        if later is not None and key in _LATER[later]:
            raise ConfigError(f"{where}: {key} belongs to cbx/1 but this version does not have it yet; remove it")
        near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.0)
        raise ConfigError(
            f"{where}: unknown key {key!r}; the nearest known key is {near[0]!r}" if near else f"{where}: unknown key {key!r}"
        )
    return cast(dict[str, object], value)


def _named(top: dict[str, object], key: str) -> dict[str, object]:
    value = top.get(key)
    if not isinstance(value, dict) or not value:
        raise ConfigError(f"{key}: at least one is needed")
    for name in value:
        if not isinstance(name, str) or not name.replace("-", "_").isidentifier():
            raise ConfigError(f"{key}: {name!r} is not a name; use letters, digits, - and _")
    return cast(dict[str, object], value)


def _text(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise ConfigError(f"{where}: {value!r} is not text")
    return value


def _integer(value: object, where: str, low: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value < 1 << 53:
        raise ConfigError(f"{where}: {value!r} must be a whole number of at least {low}")
    return value


def _choice(value: object, where: str, choices: tuple[str, ...]) -> str:
    if value not in choices:
        near = difflib.get_close_matches(str(value), choices, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"{where}: {value!r} is none of {', '.join(choices)}{hint}")
    return str(value)
