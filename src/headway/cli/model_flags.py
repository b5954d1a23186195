"""The settings of ServeConfig that other commands share: the model and how it is loaded. One description, one precedence."""

import argparse
import os

from headway.core.config import ServeConfig, from_sources, settings_of

LOADING = ("accuracy", "threads", "kv_memory_bytes", "kv_dtype", "context_tokens")


def add_model_flags(parser: argparse.ArgumentParser, fields: tuple[str, ...] = LOADING) -> None:
    """NAME and a flag for each of `fields`; absent ones stay None, so that HEADWAY_* variables and defaults apply."""
    settings = settings_of(ServeConfig)
    parser.add_argument("model", nargs="?", default=None, metavar="NAME", help=f"{settings['model'].help} (default smollm2-135m)")
    for name in fields:
        setting = settings[name]
        parser.add_argument(setting.flag, dest=name, default=None, help=setting.help.replace("%", "%%"))


def config_of(namespace: argparse.Namespace) -> ServeConfig:
    """The configuration that the flags, the environment and the defaults make together. Raises ConfigError."""
    return from_sources(ServeConfig, namespace, os.environ)
