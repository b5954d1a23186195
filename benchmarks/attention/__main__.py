"""python -m benchmarks.attention: decode against the paged-read limit, variants, sparsity, prefill, and torch (PEERS=folder of its venv).

Everything on one thread counts CPU seconds of that thread; contenders of a line are interleaved. `--only TEXT` picks lines.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

from benchmarks.attention.ours import Decode, Prefill, cpu_s
from benchmarks.engine.__main__ import Contender
from benchmarks.rows import Row, finish, header, parser, peers_python, ratio_row
from headway.attention.library import alibi, causal, soft_cap, window

_GOALS = {"f32": 0.80, "bf16": 0.65, "f16": 0.65, "int8": 0.60}


def limits(repeat: int) -> list[Row]:
    """Share of the paged-read limit: 16-token pages of random order, GQA 32/8, D 128."""
    rows = []
    for dtype, goal in _GOALS.items():
        decode = Decode(dtype)
        reader = decode.reader()
        ways: list[list[float]] = [[] for _ in range(reader.ways)]
        ours = []
        for i in range(repeat * decode.steps):
            ours.append(cpu_s(decode.run, i))
            for way, times in enumerate(ways):
                times.append(cpu_s(reader.read, i + 1, way))
        limit = min(ways, key=median)
        speed = [decode.bytes / t / 1e9 for t in ours]
        row = ratio_row("attention", f"decode {dtype}: GB/s of KV, limit", speed, [decode.bytes / t / 1e9 for t in limit], "GB/s")
        rows.append(judged(row, f">= {goal}", goal))
        ns = median(ours) / decode.token_heads * 1e9
        print(f"  {rows[-1].case}: {row.ours:.1f} of {row.peer:.1f}, {ns:.1f} ns a token and kv head", flush=True)
    return rows


def judged(row: Row, goal: str, least: float, most: float = float("inf")) -> Row:
    assert row.ratio is not None
    values = {name: getattr(row, name) for name in row.__slots__}
    return Row(**values | {"goal": goal, "met": least <= row.ratio <= most})


def compared(
    case: str, one: Callable[[int], object], other: Callable[[int], object], repeat: int, goal: str, least: float, most: float
) -> Row:
    """Ratio of CPU seconds of two things of ours."""
    times: tuple[list[float], list[float]] = ([], [])
    for i in range(repeat):
        for work, into in zip((one, other), times, strict=True):
            into.append(cpu_s(work, i) * 1e3)
    return judged(ratio_row("attention", case, *times, "ms"), goal, least, most)


def variants(repeat: int) -> list[Row]:
    """What a hook costs, with keys that come from memory."""
    plain, rows = Decode("f32"), []
    made = {
        "soft cap": Decode("f32", variant=soft_cap(30.0)),
        "ALiBi": Decode("f32", variant=alibi(32)),
        "causal": Decode("f32", mask=causal),
    }
    for name, other in made.items():
        rows.append(compared(f"decode f32, {name} to plain", other.run, plain.run, repeat * 4, "<= 1.10", 0, 1.10))
    return rows


def sparsity(repeat: int) -> list[Row]:
    long = Decode("f32", batch=2, tokens=32768, mask=causal & window(1023))
    short = Decode("f32", batch=2, tokens=1024)
    return [compared("decode f32, window 1024 of 32k to 1024 keys", long.run, short.run, repeat * 20, "<= 1.30", 0, 1.30)]


def prefill_alone() -> list[Row]:
    rows = []
    for dtype in ("f32", "bf16"):
        work = Prefill(dtype, 1024)
        times = [cpu_s(work.run) for _ in range(3)]
        rows.append(Row("attention", f"prefill {dtype} 1024 causal", work.flops / median(times) / 1e9, None, "GFLOP/s"))
    return rows


def against_torch(python: Path, repeat: int, peers: str) -> list[Row]:
    rows = []
    with Contender("torch", [str(python), str(Path(__file__).parent / "peer_torch.py")], {"OMP_NUM_THREADS": "1"}) as torch:

        def line(name: str, ours: Callable[[int], object], goals: dict[str, float], **question: str | int) -> None:
            for peer, goal in goals.items():
                if peers not in peer:
                    continue
                mine: list[float] = []
                theirs: list[float] = []
                for i in range(repeat):
                    mine.append(1e3 * min(cpu_s(ours, 2 * i + j) for j in range(2)))
                    answer: Sequence[float] = torch.ask(peer=peer, repeat=2, **question)["seconds"]  # type: ignore[assignment]
                    theirs.append(1e3 * min(answer))
                row = ratio_row("attention", f"{name}, {peer} / ours", theirs, mine, "ms", peer_version=torch.version)
                rows.append(judged(row, f">= {goal}", goal))
                print(f"  {rows[-1].case}: {row.ours:.2f} / {row.peer:.2f} ms = {row.ratio:.2f}", flush=True)

        for dtype, goal in (("f32", 1.8), ("bf16", 5.0)):
            decode = Decode(dtype)
            line(f"decode {dtype} 16 x 1024", decode.run, {"sdpa": 1.0, "flex": goal}, case="decode", dtype=dtype, batch=16, tokens=1024)
        for dtype, goal in (("f32", 1.0), ("bf16", 1.2)):
            for tokens in (1024, 2048, 4096):
                work = Prefill(dtype, tokens)
                line(
                    f"prefill {dtype} {tokens}",
                    work.run,
                    {"sdpa": goal, "flex": goal},
                    case="prefill",
                    dtype=dtype,
                    tokens=tokens,
                )
    return rows


def main() -> int:
    arguments = parser("Attention against the read limit and torch")
    arguments.add_argument("--only", default="", help="limits, variants, sparsity, prefill or torch")
    arguments.add_argument("--peer", default="", help="sdpa or flex; without, both (flex compiles for a minute)")
    arguments.add_argument("--repeat", type=int, default=3)
    chosen = arguments.parse_args()
    machine = header("attention")
    parts: dict[str, Callable[[], list[Row]]] = {
        "limits": lambda: limits(chosen.repeat),
        "variants": lambda: variants(chosen.repeat),
        "sparsity": lambda: sparsity(chosen.repeat),
        "prefill": prefill_alone,
    }
    python = peers_python()
    if python is not None:
        parts["torch"] = lambda: against_torch(python, chosen.repeat, chosen.peer)
    rows = [row for name, part in parts.items() if chosen.only in name for row in part()]
    return finish(rows, machine, chosen.json)


if __name__ == "__main__":
    sys.exit(main())
