"""Benchmarks against other implementations. Modules with a command run as `python -m bench.<name>`."""
