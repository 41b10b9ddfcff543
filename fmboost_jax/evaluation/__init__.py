"""Protocols, image sources, metrics and results of `fmboost_jax.evaluate`."""
