"""`headway serve`: flags, variables and a TOML file become one ServeConfig, which the server room runs."""

import argparse
import os
from pathlib import Path

from headway.cli.parser import CommandParser
from headway.core.config import ServeConfig, add_flags, from_sources, load_toml

DESCRIPTION = """\
Serve a model over the OpenAI API, keeping each request's promise of a first token (TTFT) and of a pace (TPOT).
Every flag is also a variable (--kv-memory: HEADWAY_KV_MEMORY) and a key of the table [serve] in the file of --config;
flags win over variables, variables over the file."""

EXAMPLES = """\
  headway serve                                            smollm2-135m at http://127.0.0.1:8000
  headway serve --accuracy exact --kv-memory 1GiB          exact arithmetic, more room for long conversations
  headway serve ./my-model.gguf --port 8080                a file of your own
  HEADWAY_API_KEY=secret headway serve --host 0.0.0.0 --allow-host box.lan    for the whole network, with a key
"""


def run(argv: list[str]) -> int:
    """Blocks until the server has stopped."""
    config = parse(argv)
    from headway.server.run import serve

    return serve(config)


def parse(argv: list[str]) -> ServeConfig:
    """The configuration that `argv`, the environment and the TOML file make together. Raises ConfigError."""
    namespace = parser().parse_args(argv)
    toml = load_toml(Path(namespace.config), "serve") if namespace.config else None
    return from_sources(ServeConfig, namespace, os.environ, toml)


def parser() -> argparse.ArgumentParser:
    made = CommandParser("serve", DESCRIPTION, EXAMPLES)
    add_flags(made, ServeConfig)
    made.add_argument("--config", metavar="FILE", help="TOML file with a table [serve]")
    return made
