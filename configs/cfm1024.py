"""The paper's upsampler on Stable Diffusion latents: 512² → 1024², latents at 128².

    python -m fmboost_jax.precompute --config configs/cfm1024.py --config.first_stage.path=SD_VAE \
        --images PHOTOS --out DATA
    python -m fmboost_jax.train --config configs/cfm1024.py --config.first_stage.path=SD_VAE \
        --config.data.dir=DATA --workdir RUN

Variants: `configs/cfm1024.py:x4` for 256² → 1024².

The paper reports (COCO-5k, FID): 28.81 for 512² → 1024², 30.64 for 256² → 1024² (arXiv 2312.07360, table 2). The base
UNet has 305,806,340 parameters and needs 452.4 GFLOP a forward pass at this size.

Attention has the ordinary layout, `attention_layout="heads"`. The reference's code computes "interleaved"; weights of
one layout give other velocities in the other. To train a network for the reference's code, add
--config.unet.attention_layout=interleaved.
"""

from ml_collections import ConfigDict

from fmboost_jax.configuration import defaults
from fmboost_jax.registry import choose
from fmboost_jax.training.config import TrainingConfig

LOW_RES = {"": 512, "x4": 256}


def get_config(variant: str = "") -> ConfigDict:
    """The config of a variant: "" (×2) or "x4"."""
    config = defaults(TrainingConfig)
    config.first_stage.kind = "kl"

    config.data.low_res = choose("variant", variant, LOW_RES)
    config.data.high_res = 1024
    config.data.upsampling = "psu"
    config.data.low_res_source = "latents"  # ours: what a diffusion model's latents, decoded, look like
    config.data.crops = 0  # one centre crop a photograph

    config.source.start = "low_res"
    config.source.noise_step = 400
    config.path = "linear"
    config.objective = "flow"

    config.unet.in_channels = 8
    config.unet.out_channels = 4
    config.unet.model_channels = 128
    config.unet.channel_mult = (1, 2, 4, 8)
    config.unet.num_res_blocks = 3
    config.unet.attention_resolutions = (8, 16)
    config.unet.num_heads = 4
    config.unet.dim_head = 64
    config.unet.attention_layout = "heads"  # the reference's code computes "interleaved", see UNetConfig
    config.unet.dtype = "bfloat16"

    config.optim.lr = 3e-5
    config.optim.warmup_steps = 1000
    config.optim.warmup_offset = 1  # update k of the warm-up has the rate lr · k / 1000
    config.optim.clip_norm = 0.0

    config.ema.decay = 0.999
    config.ema.copy_until = 1000
    config.ema.takes_in = "before"  # an update's average takes in the parameters before it

    config.train.steps = 1_000_000  # ours: the paper names no number
    config.train.batch_size = 256  # ours: the paper names no number

    config.checkpoint.every = 10_000
    config.checkpoint.keep_every = 100_000

    config.evaluate.every = 5_000
    config.evaluate.images = 64  # ours: the reference evaluates 64 batches
    config.evaluate.method = "rk4"
    config.evaluate.steps = 39
    return config
