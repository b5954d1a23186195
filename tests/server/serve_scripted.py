"""A program for tests: the front process around a scripted fleet (TEST DOUBLE). `python -m tests.server.serve_scripted PORT DRAIN_S`."""

import asyncio
import contextlib
import dataclasses
import sys
from typing import Any

from tests.fleet.doubles import Script, ScriptedFleet
from tests.server.scripted import byte_model

from headway.core.config import ServeConfig
from headway.core.errors import HeadwayError
from headway.server.port import listen
from headway.server.run import serve_on


async def start(config: ServeConfig, on_progress: Any) -> ScriptedFleet:
    on_progress("weights", 1.0)
    return ScriptedFleet(Script(token_ids=(65,) * 200, gap_s=0.01))


def main(port: int, drain_s: float) -> int:
    config = ServeConfig(port=port, drain_s=drain_s)
    try:
        with contextlib.closing(listen(config.host, config.port)) as listener:
            config = dataclasses.replace(config, port=listener.getsockname()[1])
            return asyncio.run(serve_on(listener, {"tiny": byte_model()}, config, start))
    except HeadwayError as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), float(sys.argv[2])))
