"""The first stage of the packaged photograph boosters: a tiny autoencoder, 8× smaller, 32 channels.

    python tools/split_photos.py PHOTOS SPLIT
    python -m fmboost_jax.train_autoencoder --config configs/photo_autoencoder.py \
        --config.data.dir=SPLIT/train --config.evaluate.dir=SPLIT/held_out --workdir RUN

configs/autoencoder_demo.py explains every field.
"""

from ml_collections import ConfigDict

from fmboost_jax.configuration import load_config


def get_config() -> ConfigDict:
    """The autoencoder's config."""
    config = load_config("autoencoder_demo.py")
    config.data.crop_scale = 4.0  # photographs that were shrunk are sharper than native pixels
    config.autoencoder.latent_channels = 32
    config.autoencoder.width = 120
    config.train.steps = 6000
    config.checkpoint.every = 250
    config.evaluate.every = 1500
    config.evaluate.size = 512
    return config
