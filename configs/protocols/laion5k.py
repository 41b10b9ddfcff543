"""LAION-5k, text to 1024² (arXiv 2312.07360): a base model's latents, boosted in 40 Euler steps.

    python -m fmboost_jax.evaluate --config laion5k.py --booster BUNDLE --base SD_FOLDER_OR_ID \
        --images PHOTOS --captions CAPTIONS.json --out RESULTS

Images: 5,000 of a folder, drawn by seed and name, no side below 1024; the largest square from the middle, resized to
1024² by Lanczos. Prompts: their captions. The base model makes 512² latents; `laion5k.py:x4`: 256². The paper does not
publish its 5,000 images, nor the base model's steps and guidance; those of this file are ours.
docs/evaluation.md has the published rows.
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
    config.source = "prompts"
    config.low_res = choose("variant", variant, VARIANTS)
    config.steps = 40
    config.metrics = ("clip", "fid", "patch-fid")
    return config
