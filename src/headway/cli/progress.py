"""A progress bar on stderr: redrawn in place on a terminal, a line every tenth of the way elsewhere."""

from types import TracebackType
from typing import Self, TextIO

CELLS = 30


class ProgressBar:
    """`update(stage, fraction)` with a fraction in [0, 1]; the stage ("download", "sha256") is shown beside the name."""

    def __init__(self, name: str, out: TextIO) -> None:
        self._name = name
        self._out = out
        self._in_place = out.isatty()
        self._shown = ("", -1)

    def update(self, stage: str, fraction: float) -> None:
        percent = round(100 * min(max(fraction, 0.0), 1.0))
        step = percent if self._in_place else percent // 10 * 10
        if (stage, step) == self._shown:
            return
        self._shown = (stage, step)
        if self._in_place:
            filled = "█" * (CELLS * percent // 100)
            self._out.write(f"\r\x1b[2K{self._name} {filled:░<{CELLS}} {percent:3d} %  {stage}")
        else:
            self._out.write(f"{self._name}: {stage} {step} %\n")
        self._out.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._in_place and self._shown != ("", -1):
            self._out.write("\n")
            self._out.flush()
