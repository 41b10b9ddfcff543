"""Latent pairs on disk and in memory: photographs in, ArrayRecord shards, grain batches out."""
