"""`python -m benchmarks.startup`: how long until a server answers, and what `headway --help` costs."""
