"""`headway replay`: feed a journal to the scheduler again and say whether every decision came out the same, bit for bit."""

import sys
from pathlib import Path

from headway.cli.parser import CommandParser
from headway.core.errors import ConfigError

EXAMPLES = """\
  headway replay ~/.local/state/headway/serve/8000      the journal of the server on port 8000 (stopped, or a copy)
"""


def run(argv: list[str]) -> int:
    """0 if everything is the same, 1 if something differs."""
    parser = CommandParser("replay", "Repeat every decision of a recorded run: router commands and iterations, bit for bit.", EXAMPLES)
    parser.add_argument("file", metavar="FILE", help="a journal: its directory, or one segment of it")
    args = parser.parse_args(argv)
    path = Path(args.file)
    if not path.exists():
        raise ConfigError(f"{path} does not exist; give the directory of a journal (`headway serve` names its own at start)")
    from headway.fleet.replay import replay

    result = replay(path)
    print(f"{result.events} events, {result.commands} commands and {result.iterations} iterations repeated")
    if result.first_difference:
        print(f"first difference: {result.first_difference}", file=sys.stderr)
        return 1
    print("all of them came out the same, bit for bit")
    return 0
