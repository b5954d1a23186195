"""`python -m benchmarks.kernels`: the matrix products of quantised weights, tile by tile, one thread."""
