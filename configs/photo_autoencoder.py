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
    config.loss.rmse = 2.0  # gained 0.4 dB in 3,300 steps, and SSIMULACRA2 with it
    config.loss.enlarged = 0.0
    config.loss.blurred = 0.3  # boosters start from enlarged small images
    config.loss.latent_noise = 0.01
    config.train.steps = 9000
    config.checkpoint.every = 250
    config.evaluate.every = 1500
    config.evaluate.size = 512
    return config
