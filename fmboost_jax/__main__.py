"""`python -m fmboost_jax COMMAND`, the same as `fmboost COMMAND`."""

from fmboost_jax.cli import entry_point

if __name__ == "__main__":
    entry_point()
