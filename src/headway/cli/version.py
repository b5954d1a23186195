"""`headway version`: versions of Headway and of what it stands on, for a bug report."""

import platform
from importlib.metadata import PackageNotFoundError, version

from headway import __version__
from headway.cli.parser import CommandParser

STANDS_ON = ("numpy", "numba", "llvmlite", "tokenizers", "uvicorn", "msgspec")


def run(argv: list[str]) -> int:
    CommandParser("version", "Versions of Headway and of what it stands on.").parse_args(argv)
    print(f"headway {__version__}")
    print(f"python {platform.python_version()} on {platform.system()} {platform.release()} {platform.machine()}")
    for package in STANDS_ON:
        print(f"{package} {_version(package)}")
    return 0


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
