"""CPU kernels: emitters (llvmlite), control code (numba), their disk cache, and the Team of threads that runs them."""
