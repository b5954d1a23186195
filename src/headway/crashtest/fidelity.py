"""The gate: a trace whose replay does not give the directory that the program left is never the basis of a clean verdict."""

from collections.abc import Sequence

from headway.crashtest.operations import Trace
from headway.crashtest.vfs import simulate


def fidelity(trace: Trace, *, ignore: Sequence[str] = (), limit: int = 20) -> list[str]:
    """What keeps a trace from being faithful, one sentence each; empty means byte-exact.

    `ignore` are shell patterns of files that a recovery does not read (lock files that live in shared memory).
    """
    if trace.final is None:
        return [*trace.unseen, "the directory at the end of the run is not known; record the run with `headway crashtest trace`"]
    simulated = simulate(trace)
    ours, real = simulated.image.tree().without(ignore), trace.final.without(ignore)
    mapped = simulated.mapped_paths()
    problems = []
    for line in ours.differences(real, limit=limit):
        path = line.partition(": ")[0]
        hint = "; it was written through a shared mapping, which strace cannot see: use the ptrace tracer" if path in mapped else ""
        problems.append(f"replay against reality: {line}{hint}")
    if problems:
        problems.extend(simulated.contradictions[:limit])
    return [*trace.unseen, *problems]
