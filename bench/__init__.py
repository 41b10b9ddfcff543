"""What is timed, and against whom. Each module is a command: `python -m bench.<name>`."""
