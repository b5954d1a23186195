"""`headway bench`: run a workflow of competing apps against a server, or the demo."""

from headway.cli.machine import require_supported
from headway.cli.parser import CommandParser

EXAMPLES = """\
  headway bench demo                      three apps, once first come first served, once with promises; ends with a report
  headway bench run FILE.yaml             your own apps, rates and promises; start from examples/workflow.yaml (docs/bench.md)
  headway bench run --help                options of a run
"""


def run(argv: list[str]) -> int:
    if argv and argv[0] == "demo":
        require_supported()
        from headway.bench.demo import main as demo

        return demo(argv[1:])
    if argv and argv[0] == "run":
        from headway.bench.run import main as run_workflow

        return run_workflow(argv[1:])
    parser = CommandParser("bench", "Let several apps compete for one model over HTTP and score every promise.", EXAMPLES)
    parser.add_argument("action", choices=("run", "demo"), help="run a workflow file, or the demo")
    parser.parse_args(argv or ["--help"])
    return 0
