"""photo-x4-looks: photo-x4 trained on for looks, with a perceptual distance and a discriminator of images.

    python -m fmboost_jax.precompute --config configs/looks.py --images TURNED --out DATA
    python -m fmboost_jax.train --config configs/looks.py --config.data.dir=DATA --workdir RUN
    python -m fmboost_jax.export --checkpoint RUN --half --blend photo-x4 --blend-share 0.3 --out photo-x4-looks

TURNED are photographs that tools/turn_photos.py has turned; the rate and the batch are for a few CPU cores.
docs/weights.md has the second phase, in which the rate falls, and the measurements; configs/demo.py explains every
field.
"""

from ml_collections import ConfigDict

from fmboost_jax.configuration import load_config


def get_config() -> ConfigDict:
    """The config, of factor ×4."""
    config = load_config("photo.py:x4")
    config.seed = 2
    config.data.crops = 12
    config.finish.latent = 0.02
    config.finish.pixels = 0.5
    config.finish.detail = 0.0
    config.finish.perceptual = 0.1
    config.finish.grid = 1.5
    config.finish.consistency = 0.5
    config.finish.adversarial = 0.03
    config.finish.discriminator = "images"
    config.finish.discriminator_width = 32
    config.finish.discriminator_every = 1
    config.finish.discriminator_rate = 5.0
    config.optim.lr = 2e-4
    config.optim.b1 = 0.5
    config.optim.warmup_steps = 30
    config.optim.decay_steps = 0
    config.train.init_from = "photo-x4"
    config.train.batch_size = 4
    config.train.steps = 748  # of the first phase
    config.ema.decay = 0.99
    config.ema.copy_until = 50
    config.evaluate.every = 0
    return config
