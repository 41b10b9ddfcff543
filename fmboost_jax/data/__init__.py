"""Latent pairs: photographs, ArrayRecord shards, batches of a grain pipeline."""
