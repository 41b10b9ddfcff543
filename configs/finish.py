"""The finish of a trained booster: sharper results in one step, by a perceptual distance and a discriminator.

    python -m fmboost_jax.train --config finish.py --config.train.init_from=RUN --config.data.dir=DATA --workdir OUT
    python -m fmboost_jax.export --checkpoint OUT --half --out BUNDLE

The latents and the variants are those of configs/photo.py. The source is the second phase of RFMSR (arXiv
2607.12753): the velocity loss over all times stays, so the network remains a flow.
"""

from ml_collections import ConfigDict

from fmboost_jax.configuration import load_config


def get_config(variant: str = "") -> ConfigDict:
    """The config of a variant: "" (×2) or "x4"."""
    config = load_config(f"photo.py:{variant}")
    config.finish.velocity = 1.0
    config.finish.latent = 0.0
    config.finish.pixels = 0.5
    config.finish.perceptual = 0.1
    config.finish.consistency = 0.5
    config.finish.detail = config.finish.grid = 0.0
    config.finish.adversarial = 0.01
    config.finish.crop = 16
    config.optim.lr = 1e-4
    config.train.steps = config.optim.decay_steps = 2000
    return config
