"""The settings of ServeConfig that other commands share: the model and how it is loaded. One description, one precedence."""

import argparse
import os

from headway.core.config import ServeConfig, add_flags, from_sources

LOADING = ("accuracy", "threads", "kv_memory_bytes", "kv_dtype", "context_tokens")


def add_model_flags(parser: argparse.ArgumentParser, fields: tuple[str, ...] = LOADING) -> None:
    """NAME and a flag for each of `fields`; absent ones stay None, so that HEADWAY_* variables and defaults apply."""
    add_flags(parser, ServeConfig, only=("model", *fields))


def config_of(namespace: argparse.Namespace) -> ServeConfig:
    """The configuration that the flags, the environment and the defaults make together. Raises ConfigError."""
    return from_sources(ServeConfig, namespace, os.environ)
