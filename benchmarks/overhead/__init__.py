"""`python -m benchmarks.overhead`: CPU a token that HTTP and scheduling cost at 16 streams."""
