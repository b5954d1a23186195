"""The table of sub-commands: what each is for, which module runs it, and which extra brings what it needs. Imports nothing."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Command:
    """`module.run(argv) -> int` runs it. `computes`: it loads a model in this process tree, so the machine must be a supported one."""

    summary: str
    module: str
    extra: str = ""
    computes: bool = False


COMMANDS = {
    "serve": Command("answer the OpenAI API, keeping each request's promise", "headway.cli.serve", "serve", computes=True),
    "chat": Command("talk to a model in the terminal", "headway.cli.chat", "serve", computes=True),
    "pull": Command("fetch a model and verify it", "headway.cli.pull", "serve"),
    "models": Command("list the models that can be pulled or are here, or inspect one", "headway.cli.models", "serve"),
    "calibrate": Command("measure how long work takes on this machine", "headway.cli.calibrate", "serve", computes=True),
    "bench": Command("let several apps compete for a model and see who kept their promises", "headway.cli.bench", "serve,bench"),
    "attention": Command("time, calibrate and explain attention kernels and plans", "headway.cli.attention", "attention", computes=True),
    "crashtest": Command("find what a power cut can break in any program", "headway.cli.crashtest", "crashtest"),
    "replay": Command("repeat every decision of a journal and compare", "headway.cli.replay", "serve"),
    "doctor": Command("what this machine has, and what is missing for what", "headway.cli.doctor"),
    "version": Command("versions of headway and of what it stands on", "headway.cli.version"),
}

# Nobody but the Team starts compute threads: more threads than cores ruin everybody's latency.
SINGLE_THREADED = {
    "TOKENIZERS_PARALLELISM": "false",
    "RAYON_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "NUMBA_NUM_THREADS": "1",
}
