"""`headway models`: the catalogue with what is here already, or everything known about one model."""

from collections.abc import Mapping

from headway.cli.parser import CommandParser

EXAMPLES = """\
  headway models                          what can be pulled; `*` marks what is here
  headway models inspect smollm2-135m     shape, weights, tokenizer and template of one
  headway models inspect ./file.gguf
"""


def run(argv: list[str]) -> int:
    parser = CommandParser("models", "List the models that can be pulled and that are here, or inspect one.", EXAMPLES)
    parser.add_argument("action", nargs="?", choices=("list", "inspect"), default="list", help="default: list")
    parser.add_argument("name", nargs="?", metavar="NAME", help="catalogue name or path of a GGUF file (inspect)")
    args = parser.parse_args(argv)
    if (args.action == "inspect") != (args.name is not None):
        parser.error("`models inspect` takes one NAME, `models list` takes none")
    return _inspect(args.name) if args.action == "inspect" else _list()


def _list() -> int:
    from headway.models import catalogue, hub

    here = {model.name for model in hub.installed()}
    entries = catalogue.load()
    width = max(map(len, entries), default=0)
    for name, entry in entries.items():
        print(f"{'*' if name in here else ' '} {name:<{width}}  {entry.download_bytes / 1e6:4.0f} MB  {entry.licence:<12}  {entry.title}")
    print("\n* is here. Fetch one with `headway pull NAME`.")
    return 0


def _inspect(name: str) -> int:
    from headway.models.model import open_model

    _print_tree(open_model(name).describe())
    return 0


def _print_tree(values: Mapping[str, object], indent: int = 0) -> None:
    width = max(map(len, values), default=0)
    for key, value in values.items():
        if isinstance(value, Mapping):
            print(f"{'':{indent}}{key}")
            _print_tree(value, indent + 2)
        else:
            print(f"{'':{indent}}{key:<{width}}  {value}")
