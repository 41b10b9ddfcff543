"""LAION-5k: photographs of 1024² and more, made small and boosted back (arXiv 2312.07360).

    python -m fmboost_jax.evaluate --config configs/protocols/laion5k.py --booster BUNDLE --images PHOTOS --out RESULTS

Images: 5,000 of a folder, drawn by seed and name, no side below 1024; the largest square from the middle, resized to
1024² by Lanczos. Made small: 512² by Pillow's bicubic filter. `laion5k.py:x4`: 256². Boosted in 40 Euler steps.

Which 5,000 images the paper took, and by which filter they were made small, is not published, so numbers on another set
compare methods on that set alone.
"""

from ml_collections import ConfigDict

from fmboost_jax.configuration import load_config
from fmboost_jax.registry import choose

VARIANTS = {"": 512, "x4": 256}


def get_config(variant: str = "") -> ConfigDict:
    """The protocol of a variant: "" (×2) or "x4"."""
    config = load_config("folders.py")
    config.name = f"laion5k{':' * bool(variant)}{variant}"
    config.count = 5000
    config.high_res = 1024
    config.low_res = choose("variant", variant, VARIANTS)
    config.steps = 40
    config.metrics = ("psnr", "ssim", "lpips", "fid", "patch-fid")
    return config
