"""What can be set about `headway serve`, described once: flags, `HEADWAY_*` variables and TOML keys are generated from the fields.

`from_sources(ServeConfig, namespace, env, toml)` builds one; building it by hand runs the same checks.
"""

# ruff: noqa: RUF009 (`setting` is dataclasses.field with a description)
from dataclasses import dataclass
from typing import Literal

from headway.core.errors import ConfigError
from headway.core.settings import (
    add_flags,
    check_all,
    from_sources,
    load_toml,
    parse_bool,
    parse_bytes,
    parse_duration_s,
    setting,
    settings_of,
)

__all__ = [
    "Accuracy",
    "Policy",
    "ServeConfig",
    "add_flags",
    "from_sources",
    "load_toml",
    "parse_bool",
    "parse_bytes",
    "parse_duration_s",
    "setting",
    "settings_of",
]

Accuracy = Literal["exact", "fast"]
Policy = Literal["headway", "fcfs"]

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class ServeConfig:
    """Settings of a server. 0 or "" means "decided at start" (threads: all cores; KV dtype: the mode's; context: the model's)."""

    model: str = setting("smollm2-135m", "catalogue name or path of a GGUF file", positional=True, metavar="NAME")
    host: str = setting("127.0.0.1", "address to listen on")
    port: int = setting(8000, "TCP port to listen on; 0 takes a free one", minimum=0, maximum=65535)
    accuracy: Accuracy = setting("fast", "exact: results independent of batching, KL <= 1e-4; fast: KL <= 5e-3", choices=("exact", "fast"))
    policy: Policy = setting("headway", "who runs next: by deadline, or first come first served", choices=("headway", "fcfs"))
    threads: int = setting(0, "compute threads; 0 = all cores", minimum=0, maximum=1024)
    kv_memory_bytes: int = setting(512 * MIB, "memory for KV pages", name="kv-memory", parse=parse_bytes, minimum=MIB, metavar="SIZE")
    kv_dtype: str = setting("", "type of stored keys and values instead of the accuracy mode's", choices=("", "f16", "bf16"))
    context_tokens: int = setting(0, "longest prompt + answer; 0 = the model's", minimum=0, maximum=1 << 24)
    page_tokens: int = setting(16, "tokens of one KV page", minimum=16, maximum=256)
    max_open_requests: int = setting(256, "requests open at once; more get 429", minimum=1, maximum=1 << 20)
    max_body_bytes: int = setting(
        8 * MIB, "largest request body; larger ones get 413", name="max-body", parse=parse_bytes, minimum=1024, metavar="SIZE"
    )
    api_key: str | None = setting(None, "ask every client for this key", secret=True, metavar="KEY")
    allow_hosts: tuple[str, ...] = setting((), "accept this Host header too (repeatable)", name="allow-host", metavar="NAME")
    cors: str | None = setting(None, "let pages of this origin call the API", metavar="ORIGIN")
    drain_s: float = setting(30.0, "time running requests get at shutdown", name="drain", minimum=0, maximum=86400, metavar="DURATION")
    journal: Literal["on", "off"] = setting("on", "off: serve without a durable record of requests", choices=("on", "off"))
    extras: bool = setting(True, "add the `headway` object (promises kept) to replies")
    log_prompts: bool = setting(False, "write prompts into the log (they may be private)")
    chat_template: str | None = setting(None, "file with a Jinja chat template instead of the model's", metavar="FILE")

    def __post_init__(self) -> None:
        check_all(self)
        if self.page_tokens & (self.page_tokens - 1):
            raise ConfigError(f"ServeConfig.page_tokens: {self.page_tokens} is no power of two; use 16")
        for name in ("model", "host"):
            if not getattr(self, name):
                raise ConfigError(f"ServeConfig.{name}: '' is empty; leave it out for the default")
        if self.api_key is not None and not self.api_key:
            raise ConfigError("ServeConfig.api_key: '' is empty; give a key or leave it out")
