"""The one telemetry record, and its JSON Lines files: engine, server, bench client and profilers write the same schema.

The first line of a file is `{"schema": "headway.record/1"}`; every other line is one record.
"""

import json
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from headway.core.errors import ConfigError

SCHEMA = "headway.record/1"


@dataclass(slots=True)
class Record:
    """Something that happened at `t_ns` (monotonic). `units` counts what `kind` is about (tokens, bytes, pages); `attrs` is JSON-able."""

    t_ns: int
    kind: str
    request_id: str = ""
    resource: str = ""
    units: float = 0
    attrs: dict[str, Any] = field(default_factory=dict)


class JsonlWriter:
    """Appends records to `path` (threads may share it). Lines reach the operating system on `flush` and `close`.

    Not for state that must survive a crash: that is `headway.core.durable`.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._lock = threading.Lock()
        self._file = self.path.open("a", encoding="utf-8")
        if self._file.tell() == 0:
            self._file.write(json.dumps({"schema": SCHEMA}) + "\n")

    def write(self, record: Record) -> None:
        """Raises ConfigError when the record holds what JSON cannot (NaN, objects)."""
        try:
            line = json.dumps(asdict(record), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        except (TypeError, ValueError) as problem:
            raise ConfigError(f"record {record.kind!r} cannot be written as JSON ({problem}); use finite plain data") from None
        with self._lock:
            self._file.write(line + "\n")

    def flush(self) -> None:
        with self._lock:
            self._file.flush()

    def close(self) -> None:
        with self._lock:
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def read_jsonl(path: str | Path) -> Iterator[Record]:
    """Records of a file in order. A last line without its newline (a killed writer) is left out.

    Raises ConfigError naming the line when the file has another schema or a line is damaged.
    """
    names = set(Record.__dataclass_fields__)
    with Path(path).open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith("\n"):
                return
            try:
                found = json.loads(line)
                if number == 1 and found.get("schema") == SCHEMA:
                    continue
                if number == 1:
                    raise ConfigError(f"{path}: schema {found.get('schema')!r}, this program reads {SCHEMA!r}")
                if not isinstance(found, dict) or not {"t_ns", "kind"} <= set(found) <= names:
                    raise ValueError(f"fields must be among {', '.join(sorted(names))}")
            except (ValueError, AttributeError) as problem:
                raise ConfigError(f"{path}, line {number}: no record ({problem}); remove the line or write the file again") from None
            yield Record(**found)
