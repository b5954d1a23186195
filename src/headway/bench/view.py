"""The live terminal view of a run: one line an app. Plain lines every few seconds when the output is not a terminal."""

import sys
import time
from types import TracebackType
from typing import Any, Protocol, TextIO

from headway.bench.outcome import RequestRow
from headway.bench.score import on_time
from headway.bench.workflow import Workflow

_PLAIN_EVERY_S = 10.0


class _Screen(Protocol):
    def start(self) -> None: ...
    def stop(self) -> None: ...
    def update(self, renderable: Any, *, refresh: bool = False) -> None: ...


class LiveView:
    """Feed it the workers' messages (`observe`); it redraws at most 4 times a second, so that the view costs nothing measurable."""

    def __init__(self, workflow: Workflow, title: str, *, out: TextIO | None = None) -> None:
        self._workflow, self._title, self._out = workflow, title, out or sys.stdout
        self._state: dict[str, dict[str, int]] = {name: {"sent": 0, "open": 0, "events": 0} for name in workflow.apps}
        self._kept = dict.fromkeys(workflow.apps, 0)
        self._missed = dict.fromkeys(workflow.apps, 0)
        self._started_s = self._drawn_s = time.monotonic()
        self._screen: _Screen | None = None

    def __enter__(self) -> "LiveView":
        if self._out.isatty():
            from rich.console import Console
            from rich.live import Live

            self._screen = Live(self._table(), console=Console(file=self._out), auto_refresh=False, transient=True)
            self._screen.start()
        else:
            self._print(f"{self._title} ...")
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if self._screen is not None:
            self._screen.stop()
        if kind is None:
            self._print(f"{self._title}: {self._line()}")

    def observe(self, message: dict[str, Any]) -> None:
        """A worker's message: progress or a finished request's row."""
        if message["kind"] == "progress":
            self._state[message["app"]] |= {key: message[key] for key in ("sent", "open", "events")}
        elif message["kind"] == "request":
            row = RequestRow.from_plain(message["row"])
            verdict = on_time(row, self._workflow.apps[row.app].slo).on_time
            self._kept[row.app] += verdict is True
            self._missed[row.app] += verdict is False
        now_s = time.monotonic()
        if self._screen is not None and now_s - self._drawn_s > 0.25:
            self._drawn_s = now_s
            self._screen.update(self._table(), refresh=True)
        elif self._screen is None and now_s - self._drawn_s > _PLAIN_EVERY_S:
            self._drawn_s = now_s
            self._print(f"  {now_s - self._started_s:3.0f} s  {self._line()}")

    def _line(self) -> str:
        parts = []
        for name, state in self._state.items():
            done = self._kept[name] + self._missed[name]
            parts.append(f"{name} {self._kept[name]}/{done} kept, {max(state['sent'] - done, 0)} open")
        return "; ".join(parts)

    def _print(self, text: str) -> None:
        print(text, file=self._out, flush=True)

    def _table(self) -> Any:
        from rich.table import Table

        elapsed_s = time.monotonic() - self._started_s
        table = Table(title=f"{self._title}   {elapsed_s:.0f} s", title_justify="left")
        for column in ("app", "class", "sent", "open", "kept", "missed", "tokens/s"):
            table.add_column(column, justify="left" if column in ("app", "class") else "right")
        for name, app in self._workflow.apps.items():
            state, missed = self._state[name], self._missed[name]
            pace = state["events"] / max(elapsed_s, 1e-3)
            cells = [name, app.slo.cls, str(state["sent"]), str(state["open"]), f"[green]{self._kept[name]}[/]"]
            table.add_row(*cells, f"[red]{missed}[/]" if missed else "0", f"{pace:.0f}")
        return table
