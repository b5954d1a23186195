"""`python -m benchmarks.promises` (= `make bench`): quiet interleaved pairs of fcfs and headway on the same arrivals, pooled."""
