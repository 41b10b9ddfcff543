"""The paper's upsampler on Stable Diffusion latents: 512² → 1024², latents at 128².

    python -m fmboost_jax.precompute --config configs/cfm1024.py --config.first_stage.path=SD_VAE \
        --images PHOTOS --out DATA
    python -m fmboost_jax.train --config configs/cfm1024.py --config.first_stage.path=SD_VAE \
        --config.data.dir=DATA --workdir RUN

Variants: `configs/cfm1024.py:x4` for 256² → 1024².

The paper reports (COCO-5k, FID): 28.81 for 512² → 1024², 30.64 for 256² → 1024² (arXiv 2312.07360, table 2). The base
UNet has 305,806,340 parameters and needs 452.4 GFLOP a forward pass at this size.
"""

from ml_collections import ConfigDict

from configs import demo

LOW_RES = {"": 512, "x4": 256}


def get_config(variant: str = "") -> ConfigDict:
    """The config of a variant: "" (×2) or "x4"."""
    if variant not in LOW_RES:
        raise ValueError(f"configs/cfm1024.py knows the variants '' (×2) and 'x4', found {variant!r}")
    return paper_config(LOW_RES[variant], 1024)


def paper_config(low_res: int, high_res: int) -> ConfigDict:
    """The paper's network and schedule for one pair of image sizes."""
    config = demo.get_config()
    config.first_stage.kind = "kl"
    config.first_stage.path = ""

    config.data.low_res = low_res
    config.data.high_res = high_res
    config.data.crops = 0

    config.source.noise_step = 400

    config.unet.in_channels = 8
    config.unet.out_channels = 4
    config.unet.model_channels = 128
    config.unet.channel_mult = (1, 2, 4, 8)
    config.unet.num_res_blocks = 3
    config.unet.attention_resolutions = (8, 16)
    config.unet.num_heads = 4
    config.unet.pool_factor = 1
    config.unet.dtype = "bfloat16"

    config.optim.lr = 3e-5
    config.optim.warmup_steps = 1000
    config.optim.clip_norm = 0.0

    config.ema.decay = 0.999
    config.ema.copy_until = 1000

    config.train.steps = 1_000_000
    config.train.batch_size = 256
    config.train.log_every = 100

    config.checkpoint.every = 10_000
    config.checkpoint.keep_every = 100_000

    config.evaluate.every = 5_000
    config.evaluate.images = 64
    config.evaluate.method = "rk4"
    config.evaluate.steps = 39
    return config
