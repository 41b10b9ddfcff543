"""Super-resolution of degraded photographs: 512² → 1024².

    python -m fmboost_jax.evaluate --config configs/protocols/sr.py:jpeg --booster BUNDLE --images PHOTOS --out RESULTS

Images: all of a folder, no side below 1024; the largest square from the middle, resized to 1024² by Lanczos. They are
made small in one of three ways:

    sr.py              512² by Pillow's bicubic filter
    sr.py:jpeg         the same, then JPEG of a random quality from 30 to 95
    sr.py:blur_noise   blur, resize, noise and JPEG, all random, as in Real-ESRGAN's first order (arXiv 2107.10833)

Random numbers depend on the seed and the image's name alone. With `--config.low_res=256` the low-res images have 256².
"""

from ml_collections import ConfigDict

from fmboost_jax.configuration import load_config
from fmboost_jax.registry import choose

VARIANTS = {"": "none", "jpeg": "jpeg", "blur_noise": "blur_noise"}


def get_config(variant: str = "") -> ConfigDict:
    """The protocol of a variant: "" (bicubic), "jpeg" or "blur_noise"."""
    config = load_config("folders.py")
    config.name = f"sr{':' * bool(variant)}{variant}"
    config.high_res = 1024
    config.low_res = 512
    config.degradation = choose("variant", variant, VARIANTS)
    config.steps = 40
    config.metrics = ("psnr", "ssim", "lpips", "ssimulacra2", "fid", "patch-fid")
    return config
