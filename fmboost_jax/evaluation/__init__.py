"""What `python -m fmboost_jax.evaluate` is made of."""
