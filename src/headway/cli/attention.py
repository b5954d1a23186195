"""`headway attention`: time the attention kernels, calibrate their law, explain a variant, show a plan."""

from typing import TYPE_CHECKING

from headway.cli.parser import CommandParser
from headway.core.errors import ConfigError

if TYPE_CHECKING:
    from argparse import Namespace

EXAMPLES = """\
  headway attention bench                                   decode and prefill of 32/8 heads of 128, one thread
  headway attention bench --heads 9/3 --head-dim 64 --kv-dtype bf16
  headway attention calibrate --kv-dtype bf16               measure the law that prices plans (about a minute)
  headway attention explain "causal & window(1024)"         graph, tiles, kernels and what their assembly does
  headway attention explain my_variant.py:gemma             a variant or mask of your own file
  headway attention plan --lengths 4000,300,16,16 --workers 4
"""


def run(argv: list[str]) -> int:
    parser = CommandParser(
        "attention", "Attention over paged keys and values: measure it, and see what a variant or plan becomes.", EXAMPLES
    )
    parser.add_argument("action", choices=("bench", "calibrate", "explain", "plan"))
    parser.add_argument(
        "variant", nargs="?", default="causal", help='explain: FILE.py:NAME, or an expression such as "causal & window(64)"'
    )
    parser.add_argument("--heads", default="32/8", metavar="Q/KV", help="query and kv heads (default 32/8)")
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--q-dtype", choices=("f32", "f16", "bf16"), default="f32")
    parser.add_argument("--kv-dtype", choices=("f32", "f16", "bf16", "int8"), default="f32")
    parser.add_argument("--layout", choices=("HND", "NHD", "packed"), default="HND")
    parser.add_argument("--quick", action="store_true", help="calibrate: half the points")
    parser.add_argument("--lengths", default="", metavar="N,N,..", help="plan: kv tokens of each request, or a file of numbers")
    parser.add_argument("--queries", type=int, default=1, help="plan: query tokens of each request (default 1: decode)")
    parser.add_argument("--workers", type=int, default=2, help="plan: workers to balance over")
    parser.add_argument("--split-tokens", type=int, default=0, help="plan: cut at multiples (batch-invariant); default balanced")
    args = parser.parse_args(argv)
    actions = {"bench": _bench, "calibrate": _calibrate, "explain": _explain, "plan": _plan}
    return actions[args.action](args)


def _heads(args: "Namespace") -> tuple[int, int]:
    try:
        heads, kv_heads = (int(x) for x in args.heads.split("/"))
    except ValueError:
        raise ConfigError(f"--heads {args.heads}: write query heads/kv heads, for example 32/8") from None
    return heads, kv_heads


def _bench(args: "Namespace") -> int:
    from headway.attention.measure import Shape, Stopwatch
    from headway.core.machine import machine_fingerprint

    shape = Shape(*_heads(args), args.head_dim, args.kv_dtype, args.q_dtype, args.layout)
    watch = Stopwatch(shape)
    machine = machine_fingerprint()
    print(f"{machine.get('cpu', 'this CPU')}, 1 thread, cold pages in random order")
    print(f"{args.heads} heads of {args.head_dim}, q {args.q_dtype}, kv {args.kv_dtype}, {args.layout}")
    print(f"{'step':<26}{'ms':>9}{'GB/s':>8}{'GFLOP/s':>9}{'ns/token/head':>15}{'predicted':>11}")
    steps = [(f"decode {b} x {kv}", [(1, kv)] * b) for b, kv in ((1, 4096), (16, 1024), (64, 512), (16, 4096))]
    steps += [(f"prefill {q} of {kv}", [(q, kv)]) for q, kv in ((64, 2048), (512, 512), (1024, 1024))]
    for name, lengths in steps:
        plan, seconds = watch.measure(lengths, 1, 7)
        rate, flops = plan.kv_bytes / seconds / 1e9, plan.flops / seconds / 1e9
        per_token = seconds / max(plan.kv_bytes / watch.kv.token_bytes, 1) * 1e9
        print(f"{name:<26}{seconds * 1e3:>9.3f}{rate:>8.1f}{flops:>9.1f}{per_token:>15.1f}{plan.predicted_s / seconds:>10.2f}x")
    print(f"law: {watch.attention.law.made_by}. Peers and limits: python -m benchmarks.attention")
    return 0


def _calibrate(args: "Namespace") -> int:
    from headway.attention.measure import Shape, calibrate, save

    shape = Shape(*_heads(args), args.head_dim, args.kv_dtype, args.q_dtype, args.layout)
    law = calibrate(shape, quick=args.quick, progress=print)
    print(f"call {law.call_s * 1e6:.1f} us, item {law.item_s * 1e9:.0f} ns, token {law.token_s * 1e9:.2f} ns, ", end="")
    print(f"row*token {law.pair_s * 1e9:.3f} ns, partial row {law.merge_s * 1e9:.0f} ns; held-out error {100 * law.error:.0f} %")
    for size, seconds in law.runs:
        print(f"  runs of {size / 1024:.0f} KiB: {seconds * 1e9:.2f} ns a token")
    print(save(law, shape))
    return 0


def _explain(args: "Namespace") -> int:
    from headway.attention.pictures import explain

    print("\n".join(explain(args.variant, *_heads(args), args.head_dim, args.q_dtype, args.kv_dtype, args.layout == "packed")))
    return 0


def _plan(args: "Namespace") -> int:
    from pathlib import Path

    from headway.attention.pictures import gantt

    text = args.lengths or "4096,1024,1024,512,256,128,64,16"
    if not text.replace(",", "").strip().isdigit():
        text = Path(text).read_text()
    try:
        lengths = [int(word) for word in text.replace(",", " ").split()]
    except ValueError as error:
        raise ConfigError(f"--lengths: {error}; write numbers with commas, or a file of numbers") from None
    split = args.split_tokens or None
    print("\n".join(gantt(lengths, args.queries, args.workers, *_heads(args), args.head_dim, args.kv_dtype, split)))
    return 0
