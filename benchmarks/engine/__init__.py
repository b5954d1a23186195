"""`python -m benchmarks.engine`: prefill and decode speed beside llama.cpp on the same file, interleaved in one run."""
