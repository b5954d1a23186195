"""`headway calibrate`: measure the latency law of a model on this machine. Refused beside a running server: both would measure wrongly."""

from headway.cli.model_flags import add_model_flags, config_of
from headway.cli.parser import CommandParser
from headway.cli.servers import live_servers
from headway.core.errors import Locked

EXAMPLES = """\
  headway calibrate                       smollm2-135m in the mode that `serve` uses (up to 2 minutes)
  headway calibrate --quick               10 points in 30 s at most: what `make demo` does
  headway calibrate --accuracy exact --threads 1
"""


def run(argv: list[str]) -> int:
    parser = CommandParser("calibrate", "Measure how long work takes here, so that promises are quoted and kept from numbers.", EXAMPLES)
    add_model_flags(parser, ("accuracy", "threads", "kv_dtype"))
    parser.add_argument("--quick", action="store_true", help="fewer points, larger error; refined while serving")
    args = parser.parse_args(argv)
    config = config_of(args)
    running = live_servers()
    if running:
        pid, url = running[0].pid, running[0].url
        raise Locked(f"a server is running here (pid {pid}, {url}) and would spoil the measurement; stop it first: kill {pid}")
    from headway.engine.calibrate import calibrate

    calibrate(config, quick=args.quick, progress=print)
    return 0
