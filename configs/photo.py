"""Boosters of photographs and of their latents: ×2 (variant `x4`: ×4), on the latents of `photo-autoencoder`.

    python -m fmboost_jax.precompute --config configs/photo.py --images SPLIT/train --out DATA
    python -m fmboost_jax.train --config configs/photo.py --config.data.dir=DATA --workdir RUN
    python -m fmboost_jax.export --checkpoint RUN --half --out photo-x2

Half of the pairs start from small photographs, half from small latents, decoded: both are what a booster gets.
configs/demo.py explains every field; docs/weights.md says what came out.
"""

from ml_collections import ConfigDict

from fmboost_jax.configuration import load_config


def get_config(variant: str = "") -> ConfigDict:
    """The config of a variant: "" (×2) or "x4"."""
    config = load_config(f"demo.py:{variant}")
    config.first_stage.path = "photo-autoencoder"
    config.data.low_res_source = "mixed"
    config.data.crops = 12
    config.data.crop_scale = 3.0
    config.unet.in_channels = 64
    config.unet.out_channels = 32
    config.train.steps = 8000
    config.ema.decay = 0.998
    config.evaluate.images = 12
    return config
