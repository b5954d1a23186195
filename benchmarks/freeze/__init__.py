"""`python -m benchmarks.freeze`: does a stream stop while somebody else's 2,000-token prompt is read?"""
