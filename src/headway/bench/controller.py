"""The controller: starts a workflow's services, one worker process an app, gives them one start time and collects their rows."""

import asyncio
import json
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from headway.bench.client import get_json
from headway.bench.outcome import Outcomes, RequestRow
from headway.bench.processes import Children, LaunchError, free_port
from headway.bench.schedule import Planned
from headway.bench.workflow import App, Service, Workflow
from headway.core.errors import HeadwayError

# Workers begin together this long after the last one reported ready.
_START_DELAY_NS = 200_000_000
_REQUEST_TIMEOUT_S = 600.0

Observer = Callable[[dict[str, Any]], None]


class RunFailed(HeadwayError):
    """A run could not be measured at all: a worker died or the server never answered."""


async def start_service(group: Children, service: Service, log: Path, environment: dict[str, str] | None = None) -> str:
    """Base URL (with /v1) of a service, started if the workflow launches it. Raises LaunchError with the log's last lines."""
    if service.launch is None:
        return service.url
    port = free_port()
    argv = shlex.split(service.launch.cmd.replace("{port}", str(port)))
    if argv[0] == "headway":
        argv = [sys.executable, "-m", "headway.cli.main", *argv[1:]]
    child = await group.start(argv, env=environment, log=log)
    ready = f"http://127.0.0.1:{port}{service.launch.ready_path}"
    limit_ns = time.monotonic_ns() + round(service.launch.ready_timeout_s * 1e9)
    while time.monotonic_ns() < limit_ns:
        if child.returncode is not None:
            raise LaunchError(f"{shlex.join(argv)} ended with status {child.returncode} before it was ready:\n{_tail(log)}")
        status, _ = await get_json(ready, timeout_s=2.0)
        if status == 200:
            return f"http://127.0.0.1:{port}/v1"
        await asyncio.sleep(0.05)
    raise LaunchError(f"{shlex.join(argv)} did not answer 200 on {ready} in {service.launch.ready_timeout_s:g} s:\n{_tail(log)}")


async def first_model(url: str, wanted: str = "") -> str:
    """`wanted`, or the first model the server lists. Raises RunFailed if it lists none."""
    if wanted:
        return wanted
    status, body = await get_json(f"{url}/models")
    models = body.get("data") if isinstance(body, dict) else None
    if status != 200 or not isinstance(models, list) or not models or not isinstance(models[0], dict):
        raise RunFailed(f"{url}/models answered {status} without a model; name one in the workflow (services.*.model)")
    return str(models[0].get("id", ""))


async def measure(
    workflow: Workflow, urls: dict[str, str], rows: list[Planned], *, observe: Observer | None = None, send_slo: bool = True
) -> Outcomes:
    """Runs a schedule against running services (`urls` by service name) and returns every scheduled request's row.

    `send_slo`: whether the promises travel to the server as x-slo headers; they are scored either way.
    """
    group = Children()
    try:
        models = {name: await first_model(urls[name], service.model) for name, service in workflow.services.items()}
        workers: dict[str, asyncio.subprocess.Process] = {}
        for app in workflow.apps.values():
            argv = [sys.executable, "-m", "headway.bench.worker"]
            # Each worker leads one thread; nothing it imports may start more.
            worker = await group.start(argv, env={"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}, pipes=True)
            job = _job(workflow, app, urls[app.service], models[app.service], rows, send_slo)
            await _tell(worker, json.dumps(job, separators=(",", ":")))
            workers[app.name] = worker
        for name, worker in workers.items():
            if (await _message(name, worker))["kind"] != "ready":
                raise RunFailed(f"the worker of {name} did not become ready")
        start_ns = time.monotonic_ns() + _START_DELAY_NS
        outcomes = Outcomes(start_ns, start_ns, [])
        for worker in workers.values():
            await _tell(worker, str(start_ns))
        await asyncio.gather(*(_collect(name, worker, outcomes, observe) for name, worker in workers.items()))
        outcomes.end_ns = time.monotonic_ns()
    finally:
        await asyncio.shield(group.stop_all(grace_s=2.0))
    outcomes.requests.sort(key=lambda row: (row.scheduled_ns, row.app, row.index))
    return outcomes


def _job(workflow: Workflow, app: App, url: str, model: str, rows: list[Planned], send_slo: bool) -> dict[str, Any]:
    headers: dict[str, str] = {"x-slo-class": app.slo.cls} if send_slo else {}
    slo_body: dict[str, float | str] = {}
    if send_slo:
        for name, seconds in (("ttft", app.slo.ttft_s), ("tpot", app.slo.tpot_s)):
            if seconds is not None:
                headers[f"x-slo-{name}-ms"] = f"{seconds * 1e3:g}"
        if app.slo.e2e_s is not None:  # has no header
            slo_body = {"e2e_ms": app.slo.e2e_s * 1e3}
    return {
        "app": app.name,
        "kind": app.kind,
        "url": url,
        "model": model,
        "headers": headers,
        "slo_body": slo_body,
        "source": app.data.prompts,
        "prompt_tokens": app.data.tokens,
        "ignore_eos": app.output.ignore_eos,
        "closed": app.load.closed,
        "think_s": app.load.think_s,
        "max_inflight": workflow.run.max_inflight,
        "duration_ns": round(workflow.run.max_s * 1e9),
        "drain_s": workflow.run.drain_s,
        "timeout_s": _REQUEST_TIMEOUT_S,
        "plan": [[row.index, row.scheduled_ns, row.draw, row.output_tokens] for row in rows if row.app == app.name],
    }


async def _tell(worker: asyncio.subprocess.Process, line: str) -> None:
    if worker.stdin is None:
        raise RunFailed("a worker has no stdin")
    worker.stdin.write(line.encode() + b"\n")
    await worker.stdin.drain()


async def _message(name: str, worker: asyncio.subprocess.Process) -> dict[str, Any]:
    line = await worker.stdout.readline() if worker.stdout is not None else b""
    if not line:
        raise RunFailed(f"the worker of {name} ended early (status {await worker.wait()}); its error is printed above")
    message: dict[str, Any] = json.loads(line)
    return message


async def _collect(name: str, worker: asyncio.subprocess.Process, outcomes: Outcomes, observe: Observer | None) -> None:
    while True:
        message = await _message(name, worker)
        if message["kind"] == "request":
            outcomes.requests.append(RequestRow.from_plain(message["row"]))
        elif message["kind"] == "end":
            outcomes.client_cpu_s[name] = message["cpu_s"]
            outcomes.client_wait_ns[name] = message["wait_ns"]
            return
        if observe is not None:
            observe(message)


def _tail(log: Path, lines: int = 15) -> str:
    try:
        return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
    except OSError:
        return f"(no log at {log})"
