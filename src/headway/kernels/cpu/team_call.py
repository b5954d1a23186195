"""TeamCall: kernels run one after the other by every thread of a team, each with a cursor of its own for sharing the work."""

from collections.abc import Sequence

import numpy as np

from headway.kernels.cpu import layout
from headway.kernels.cpu.memory import Arena, address
from headway.kernels.cpu.team import Team


class TeamCall:
    """A program of one operation a kernel, each followed by a barrier. Threads call kernel(argument, chunk, thread); chunks = threads."""

    def __init__(self, kernels: Sequence[int], argument: int) -> None:
        n = len(kernels)
        self._arena = Arena(8 * (layout.PROGRAM_WORDS + n * layout.OP_WORDS) + n * layout.CONTROL_BYTES + 16 * len(layout.OP_NAMES) + 1024)
        ops = self._arena.take(8 * n * layout.OP_WORDS, np.int64).reshape(n, layout.OP_WORDS)
        controls = self._arena.take(n * layout.CONTROL_BYTES)
        profile = self._arena.take(16 * len(layout.OP_NAMES), np.int64)
        program = self._arena.take(8 * layout.PROGRAM_WORDS, np.int64)
        for op, kernel in zip(ops, kernels, strict=True):
            op[layout.OP_CODE] = layout.OP_CALL
            op[layout.C_KERNEL], op[layout.C_ARGUMENT] = kernel, argument
        program[layout.P_OPS], program[layout.P_N_OPS] = address(ops), n
        program[layout.P_CONTROLS], program[layout.P_PROFILE] = address(controls), address(profile)
        self._ops, self._program = ops, address(program)

    def run(self, team: Team) -> None:
        """One chunk a thread: who finds the kernel's own cursor exhausted is done at once."""
        self._ops[:, layout.OP_CHUNKS] = team.n_threads
        team.run(self._program)
