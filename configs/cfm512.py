"""First stage of a cascade: 128² → 512², latents at 64².

    python -m fmboost_jax.precompute --config configs/cfm512.py --config.first_stage.path=SD_VAE \
        --images PHOTOS --out DATA
    python -m fmboost_jax.train --config configs/cfm512.py --config.first_stage.path=SD_VAE \
        --config.data.dir=DATA --workdir RUN

Followed by configs/cfm2048.py:x4: 128² → 512² → 2048² (arXiv 2312.07360, section 4.3).
"""

from ml_collections import ConfigDict

from fmboost_jax.configuration import load_config


def get_config() -> ConfigDict:
    """The config of 128² → 512²."""
    config = load_config("cfm1024.py")
    config.data.low_res = 128
    config.data.high_res = 512
    return config
