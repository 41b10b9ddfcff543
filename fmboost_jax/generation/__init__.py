"""Prompt to image in JAX: text encoders and base model of diffusers, boosters, decoder; see `generator.Generator`."""
