"""Boosters of FLUX.2's latents: ×2 (variant `x4`: ×4), trained with the tiny autoencoder TAEF2.

    python -m fmboost_jax.precompute --config configs/flux2.py --images SPLIT/train --out DATA
    python -m fmboost_jax.train --config configs/flux2.py --config.data.dir=DATA --workdir RUN
    python -m fmboost_jax.export --checkpoint RUN --half --out flux2-x2

TAEF2's code is FLUX.2's latent after its batch norm, 32 channels at an eighth of the image's size. All pairs start from
small latents, decoded and enlarged, because a base model gives only those. TAEF2 encodes enlarged images poorly, so a
step of decoder inversion follows its encoder. configs/demo.py explains every field; docs/weights.md has the
measurements.
"""

from ml_collections import ConfigDict

from fmboost_jax.configuration import load_config


def get_config(variant: str = "") -> ConfigDict:
    """The config of a variant: "" (×2) or "x4"."""
    config = load_config(f"demo.py:{variant}")
    config.first_stage.path = "madebyollin/taef2"
    config.first_stage.inversion_steps = 1
    config.data.low_res_source = "latents"
    config.data.crops = 8
    config.data.crop_scale = 3.0
    config.data.images = True  # the terms on images compare with the photographs, not with what TAEF2 makes of them
    config.unet.in_channels = 64
    config.unet.out_channels = 32
    config.unet.model_channels = 96
    # Without noise on x0 one step is as good as forty (docs/weights.md), so the loss is that of one step, in pixels.
    config.finish.velocity = 0.0
    config.finish.latent = 0.02
    config.finish.pixels = 1.0
    config.finish.perceptual = 0.02
    config.finish.crop = 16
    config.optim.lr = 5e-4
    config.optim.warmup_steps = 50
    config.train.steps = config.optim.decay_steps = 4000
    config.ema.decay = 0.995
    config.evaluate.images = 12
    config.evaluate.steps = 1
    return config
