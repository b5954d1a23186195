"""`headway bench demo` (= `make demo`): three apps share one model, first come first served and then with promises, on the same arrivals.

Everything else of Headway is reached as a user would: through the `headway` command line and HTTP.
"""

import argparse
import asyncio
import os
import platform
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path

from headway.bench import pauses, saturate, schedule
from headway.bench.controller import measure, start_service
from headway.bench.outcome import Outcomes
from headway.bench.processes import Children, LaunchError, children, headway_command
from headway.bench.report import Report, write
from headway.bench.run import print_table
from headway.bench.schedule import Planned
from headway.bench.view import LiveView
from headway.bench.workflow import Launch, Service, Workflow, parse
from headway.core.errors import HeadwayError
from headway.core.machine import OTHERS_LIMIT
from headway.core.stats import QuietWatch, machine_fingerprint

MODEL = "smollm2-135m"
POLICIES = ("fcfs", "headway")
# The order in which the parts run: both policies see the machine early and late.
ORDER = (("fcfs", 0), ("headway", 0), ("headway", 1), ("fcfs", 1))
SATURATING_S = 10.0
LOAD = 0.75
CHAT_AT_LEAST = 62
PART_S = (20.0, 40.0)  # as short as 62 chats allow; longer only on a slow or busy machine


@dataclass(frozen=True, slots=True)
class Options:
    """`serve`: a command template with {policy} and {port} instead of `headway serve` (tests drive a double with it)."""

    output: Path
    seed: int
    saturating_s: float = SATURATING_S
    part_s: tuple[float, float] = PART_S
    chat_at_least: int = CHAT_AT_LEAST
    serve: str = ""


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 0: shown; 1: something failed (said in one line); 130: interrupted, nothing left running."""
    parser = argparse.ArgumentParser("headway bench demo", description="Three apps, one small model, one CPU: with and without promises.")
    parser.add_argument("-o", "--output", type=Path, default=Path("demo-report"), help="folder of the report (default: ./demo-report)")
    parser.add_argument("--seed", type=int, default=20, help="seed of arrivals, prompts and lengths (default: 20)")
    parser.add_argument("--serve", default="", help="another server to drive, as a command with {policy} and {port}")
    options = parser.parse_args(argv)
    return play(Options(options.output, options.seed, serve=options.serve))


def play(options: Options) -> int:
    """The whole demo; see `main`."""
    trouble = "" if options.serve else unsupported()
    if trouble:
        print(trouble, file=sys.stderr)
        return 1
    try:
        return asyncio.run(_play(options))
    except HeadwayError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("\ninterrupted; every process the demo started has ended", file=sys.stderr)
        return 130


def unsupported() -> str:
    """One line for a machine Headway does not run on yet, or nothing."""
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "AMD64"):
        return f"not supported yet: {sys.platform} on {platform.machine()}; Headway needs Linux on x86-64 with AVX2"
    try:
        flags = Path("/proc/cpuinfo").read_text().split("flags", 1)[-1].split("\n", 1)[0].split()
    except OSError:
        return ""
    missing = [name for name in ("avx2", "fma", "f16c") if name not in flags]
    return f"not supported yet: this CPU has no {', '.join(missing)}; Headway needs AVX2 or better" if missing else ""


async def _play(options: Options) -> int:
    began_s = time.monotonic()
    options.output.mkdir(parents=True, exist_ok=True)
    _announce(options)
    async with children() as group:
        if not options.serve:
            await _command(group, "pull", MODEL)
            await _command(group, "calibrate", MODEL, "--quick")
        workflow = replace(parse(files("headway.bench").joinpath("demo.yaml").read_bytes()), seed=options.seed)
        urls = {}
        for policy in POLICIES:
            print(f"starting a server with policy {policy}", flush=True)
            urls[policy] = await start_service(group, _service(options, policy), options.output / f"serve-{policy}.log")
        workflow = replace(workflow, services={"llm": replace(workflow.services["llm"], launch=None, url=urls["fcfs"])})
        workflow, facts = await _set_rates(workflow, urls["fcfs"], options)
        parts = {k: replace(workflow, seed=options.seed + k) for k in {k for _, k in ORDER}}
        plans = {k: schedule.build(part) for k, part in parts.items()}
        arms, others = await _measure_all(parts, plans, urls)
        facts["others' share of the cores, by part"] = others
        machine = machine_fingerprint()
        stats = await _server_facts(urls)
    facts["seconds the demo took"] = round(time.monotonic() - began_s, 1)
    # The saved workflow starts its own server: the demo's are gone by then.
    saved = replace(workflow, services={"llm": _service(options, "headway")})
    report = _report(options.output, saved, arms, [plans[k] for k in sorted(plans)], facts | stats, machine)
    report.notes += disturbance(others)
    path = write(report, options.output).resolve()
    _show(report, path, time.monotonic() - began_s)
    return 0


def _announce(options: Options) -> None:
    cores = len(os.sched_getaffinity(0))
    free_gib = shutil.disk_usage(options.output).free / 2**30
    print("Headway demo: three apps share one small language model on this CPU; each request carries its own latency promise.")
    if not options.serve:
        print(f"  downloads   {MODEL} (93 MB, Apache-2.0), once; {free_gib:.0f} GiB of disk are free")
    print(f"  uses        all {cores} cores, about 2 GB of memory, two servers on free ports of 127.0.0.1")
    print("  takes       about 3 minutes (up to 6 the first time: kernels are compiled); Ctrl-C stops everything\n", flush=True)


async def _command(group: Children, *arguments: str) -> None:
    """Runs a `headway` command in view of the user. Raises LaunchError with its status."""
    print(f"$ headway {' '.join(arguments)}", flush=True)
    child = await asyncio.create_subprocess_exec(*headway_command(*arguments), stdin=asyncio.subprocess.DEVNULL, start_new_session=True)
    group.running.append(child)
    status = await child.wait()
    group.running.remove(child)
    if status != 0:
        raise LaunchError(f"`headway {' '.join(arguments)}` ended with status {status}; its message is above")


def _service(options: Options, policy: str) -> Service:
    command = options.serve.replace("{policy}", policy) or f"headway serve {MODEL} --port {{port}} --policy {policy}"
    return Service("llm", launch=Launch(command, "/health", 180.0))


async def _set_rates(workflow: Workflow, url: str, options: Options) -> tuple[Workflow, dict[str, object]]:
    """The saturating run, and the workflow with `LOAD` of what it served, as near as whole requests allow."""
    target = {"llm": url}
    # A seed of its own: the parts must not find their prompts in the prefix cache of the server that served this run.
    full = replace(saturate.saturating(workflow, options.saturating_s), seed=options.seed + 1_000_003)
    with LiveView(full, f"what this machine can do ({options.saturating_s:g} s, as fast as it goes)") as view:
        run = await measure(full, target, schedule.build(full), observe=view.observe, send_slo=False)
    served = saturate.served_per_s(full, run, options.saturating_s)
    low, high = options.part_s
    per_part = (options.chat_at_least + 1) // 2
    seconds = min(high, max(low, per_part / (LOAD * served["chat"])))
    rated = saturate.with_rates(workflow, served, LOAD, seconds, {"chat": per_part, "completion": 1, "summary": 1})
    rates = {name: app.load.rate_per_s for name, app in rated.apps.items()}
    shares = {name: rate / served[name] for name, rate in rates.items()}
    print(rates_in_words(rates, shares, seconds, options.chat_at_least), flush=True)
    facts: dict[str, object] = {
        "saturating run served, requests/s": {name: round(rate, 3) for name, rate in served.items()},
        "load aimed at": LOAD,
        "load, share of what was served": {name: round(share, 3) for name, share in shares.items()},
        "rates, requests/s": {name: round(rate, 3) for name, rate in rates.items()},
        "arrivals last, s": {"a part": round(seconds, 1), "parts a policy": 2},
        "order of the parts": [f"{policy} {k + 1}" for policy, k in ORDER],
    }
    return rated, facts


def rates_in_words(rates: dict[str, float], shares: dict[str, float], seconds: float, chats: int) -> str:
    """The rates with the share of the served rate that each really is, and why one is not the share aimed at."""
    lines = [f"{name} {rate:.2f}/s ({shares[name]:.0%})" for name, rate in rates.items()]
    off = [name for name, share in shares.items() if abs(share - LOAD) > 0.02]
    why = f"\n  ({', '.join(off)}: off {LOAD:.0%}, as a part holds whole requests and a policy at least {chats} chats)" if off else ""
    return f"rates, {LOAD:.0%} of what was just served where possible: {', '.join(lines)}; two parts of {seconds:.0f} s a policy{why}"


async def _measure_all(
    parts: dict[int, Workflow], plans: dict[int, list[Planned]], urls: dict[str, str]
) -> tuple[dict[str, list[Outcomes]], list[float]]:
    """Runs of every policy, and how much of the cores processes that are not ours used during each part, in the order they ran."""
    others: list[float] = []
    arms: dict[str, dict[int, Outcomes]] = {policy: {} for policy in POLICIES}
    for policy, k in ORDER:
        part = replace(parts[k], services={"llm": replace(parts[k].services["llm"], url=urls[policy])})
        watch = QuietWatch([os.getpid()])
        with LiveView(part, f"{policy}, part {k + 1}") as view:
            arms[policy][k] = await measure(part, {"llm": urls[policy]}, plans[k], observe=view.observe)
        others.append(round(watch.quiet().others_share, 3))
    return {policy: [runs[k] for k in sorted(runs)] for policy, runs in arms.items()}, others


async def _server_facts(urls: dict[str, str]) -> dict[str, object]:
    from headway.bench.client import get_json

    facts: dict[str, object] = {}
    for policy, url in urls.items():
        _, body = await get_json(url.removesuffix("/v1") + "/stats")
        keys = ("policy", "accuracy", "law", "kv_pages_total")
        if isinstance(body, dict):
            facts[f"server {policy}"] = {key: body[key] for key in keys if key in body}
    return facts


def _report(
    output: Path,
    workflow: Workflow,
    arms: dict[str, list[Outcomes]],
    plans: list[list[Planned]],
    facts: dict[str, object],
    machine: dict[str, object],
) -> Report:
    lanes = pauses.lanes(arms, "chat", "summary")
    report = Report("Headway demo", workflow, arms, plans, machine, sentence(arms), lanes, facts=facts)
    report.next_commands = ("headway serve", "headway chat", f"headway bench run {output / 'workflow.yaml'}")
    report.notes = [
        "Both servers ran on the same cores the whole time, idle unless it was their turn; their parts took turns (see the order below).",
        "Rates are a share of what a closed-loop run of the same clients was served just before.",
        "Arrivals are a Poisson process given its number of requests; both policies got the same ones.",
        "Times are taken where the client reads the socket, against the scheduled arrival, one client process an app.",
    ]
    summary = report.summaries()["headway"]["client"]
    if summary["lateness_p99_s"] is not None and summary["lateness_p99_s"] > 1e-3:
        report.notes.append(
            f"The clients were up to {summary['lateness_p99_s'] * 1e3:.1f} ms late (p99) in sending: they share the cores with the server."
        )
    return report


def sentence(arms: dict[str, list[Outcomes]]) -> str:
    """The demo's one sentence, from the longest pause of a chat beside a document in each arm; says so when none met."""
    longest = {}
    for policy, runs in arms.items():
        found = [pause.gap_ns for run in runs for pause in pauses.find(run.requests, "chat", "summary")]
        longest[policy] = max(found) if found else None
    ours, theirs = longest.get("headway"), longest.get("fcfs")
    if ours is None or theirs is None:
        return "No chat was being answered while a 2,000-token document was read, so this run says nothing about pauses; run it again."
    mine, other = pauses.in_words(ours), pauses.in_words(theirs)
    return f"While a 2,000-token document was read, your chat paused at most {mine}; first-come-first-served paused it {other}."


def disturbance(others: list[float]) -> list[str]:
    """A note if other programs used so much of the cores, in some part, that arms do not compare; `others` in order of the parts."""
    if max(others) < OTHERS_LIMIT:
        return []
    shares = ", ".join(f"{share:.0%} ({policy} {k + 1})" for share, (policy, k) in zip(others, ORDER))
    return [f"Other programs used the cores meanwhile: {shares}. The arms are not comparable; run it again when the machine is quiet."]


def _show(report: Report, path: Path, seconds: float) -> None:
    print(f"\n{report.sentence}\n")
    for lane in report.lanes:
        tokens, reading = pauses.as_text(lane)
        print(f"{lane.name:>8} {tokens}\n         {reading}")
    if report.lanes:
        length = f"{report.lanes[0].length_ns / 1e9:.1f} s"
        print(f"         one mark is one token of a chat; ▔ a document is being read; {length} from left to right, the same arrivals\n")
    print_table(report)
    for note in report.notes[4:]:
        print(f"note: {note}")
    print(f"\nreport  {path}   ({seconds:.0f} s in all)\n")
    print("next:")
    for command, what in zip(
        report.next_commands, ("an OpenAI-compatible server on port 8000", "talk to it", "the same workflow, yours to edit")
    ):
        print(f"  {command:<{max(map(len, report.next_commands)) + 3}}{what}")
