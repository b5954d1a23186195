"""How every sub-command builds its argument parser: examples kept as written, errors in the voice of the other errors."""

import argparse
import sys
from typing import NoReturn


class CommandParser(argparse.ArgumentParser):
    """`examples` are shown under the options; a wrong argument costs one line, not the whole usage."""

    def __init__(self, command: str, description: str, examples: str = "") -> None:
        super().__init__(
            prog=f"headway {command}",
            description=description,
            epilog=f"examples:\n{examples}" if examples else None,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        print(f"headway: {message}; `{self.prog} --help` lists what it takes", file=sys.stderr)
        raise SystemExit(2)
