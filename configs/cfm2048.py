"""Last stage of a cascade: 1024² → 2048², latents at 256².

    python -m fmboost_jax.precompute --config configs/cfm2048.py --config.first_stage.path=SD_VAE \
        --images PHOTOS --out DATA
    python -m fmboost_jax.train --config configs/cfm2048.py --config.first_stage.path=SD_VAE \
        --config.data.dir=DATA --workdir RUN

Variants: `configs/cfm2048.py:x4` for 512² → 2048². Activations are recomputed in the backward pass, because those of a
256² latent take four times the memory of those of a 128² latent.
"""

from ml_collections import ConfigDict

from fmboost_jax.configuration import load_config
from fmboost_jax.registry import choose

LOW_RES = {"": 1024, "x4": 512}


def get_config(variant: str = "") -> ConfigDict:
    """The config of a variant: "" (×2) or "x4"."""
    config = load_config("cfm1024.py")
    config.data.low_res = choose("variant", variant, LOW_RES)
    config.data.high_res = 2048
    config.train.batch_size = 64
    config.unet.remat = True
    return config
