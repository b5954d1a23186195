"""Crash states of the kernel's own file systems: a loop device on a logging FUSE file, every flush epoch replayed and mounted."""
