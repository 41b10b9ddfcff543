"""Boosters of photographs and of their latents: ×2 (variant `x4`: ×4), on the latents of `photo-autoencoder`.

    python -m fmboost_jax.precompute --config configs/photo.py --images SPLIT/train --out DATA
    python -m fmboost_jax.train --config configs/photo.py --config.data.dir=DATA --workdir RUN
    python -m fmboost_jax.export --checkpoint RUN --half --out photo-x2

Half of the pairs start from small photographs, half from decoded small latents, the two inputs of a booster. The batch,
the learning rate and the steps are for a GPU, where `--config.unet.dtype=bfloat16` makes it minutes. On a few CPU cores
take `--config.train.batch_size=4 --config.optim.lr=4e-4 --config.unet.model_channels=64`. configs/demo.py explains
every field; docs/weights.md has the measurements.
"""

from ml_collections import ConfigDict

from fmboost_jax.configuration import load_config


def get_config(variant: str = "") -> ConfigDict:
    """The config of a variant: "" (×2) or "x4"."""
    config = load_config(f"demo.py:{variant}")
    config.first_stage.path = "photo-autoencoder"
    config.data.low_res_source = "mixed"
    config.data.crops = 40
    config.data.crop_scale = 3.0
    config.unet.in_channels = 64
    config.unet.out_channels = 32
    config.unet.model_channels = 96
    # Without noise on x0 one step is as good as forty (docs/weights.md), so the loss is that of one step, in pixels.
    config.finish.velocity = 0.0
    config.finish.latent = 0.1
    config.finish.crop = 16
    if variant == "x4":
        config.finish.pixels, config.finish.detail = 0.7, 0.5
        config.finish.perceptual = 0.03
        config.finish.grid = 0.5
    else:
        config.finish.pixels, config.finish.detail = 0.5, 1.0
        config.finish.perceptual = 0.02
    config.optim.lr = 8e-4
    config.optim.warmup_steps = 200
    config.train.batch_size = 64
    config.train.steps = config.optim.decay_steps = 10000 if variant == "x4" else 12000
    config.ema.decay = 0.998
    config.evaluate.images = 12
    config.evaluate.steps = 1
    return config
