"""A config from outside the package, for the toy network on shuffled pixels."""

from ml_collections import ConfigDict

from fmboost_jax.configuration import load_config


def get_config() -> ConfigDict:
    """The demo's, with the toys."""
    config = load_config("demo.py")
    config.first_stage.kind = "shuffled"
    config.first_stage.path = ""
    config.path = "quadratic(sigma_min=0.01)"
    config.network = "dit"
    config.dit = ConfigDict({"state_channels": 12, "context_channels": 12})
    return config
