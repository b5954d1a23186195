"""Tracers and importers: everything that produces an operations.Trace."""
