"""A front process for tests that kill it: `python -m tests.fleet.front_double DIRECTORY [hang]`.

Prints the engine's pid and the request ids once all stream, or, with `hang`, once the engine is stuck inside an iteration.
"""

import asyncio
import sys
from pathlib import Path

from tests.fleet.engine_double import HANG
from tests.fleet.support import fleet_of, request


async def main(directory: Path, hang: bool) -> None:
    async with fleet_of(directory) as fleet:
        tickets = [fleet.submit(request([HANG if hang else i], 900, tenant="alice@example.org", user="bob@example.org")) for i in range(4)]
        for ticket in tickets:
            await ticket.dispatched()
            if not hang:
                await anext(ticket)
        print(*fleet.stats()["engine_pids"], *(ticket.id for ticket in tickets), flush=True)
        await asyncio.sleep(3600)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), "hang" in sys.argv))
