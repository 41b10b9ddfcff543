"""COCO-5k, text to 1024²: the paper's comparison with other methods for large images (arXiv 2312.07360).

    python -m fmboost_jax.evaluate --config configs/protocols/coco5k.py --booster BUNDLE --base SD_FOLDER_OR_ID \
        --images val2017 --captions annotations/captions_val2017.json --out RESULTS

Images: the 5,000 of COCO's val2017, the largest square from the middle of each, resized to 1024² by Lanczos (most are
640×480, so they are enlarged). Prompts: the first caption of each image. The base model makes 512² latents in 25 steps,
the flow 1024² ones in 20. `coco5k.py:x4`: 256² in 40 steps, 1024² in 40. `coco5k.py:x4_25_20`: 256² in 25 steps, 1024²
in 20. Times are of batches of 4, from prompt to image.

The paper reports FID 28.81 (512² → 1024²), 30.64 and 33.48 (256² → 1024²). It does not report the captions, the
resizing of the real images, the guidance scale and the base model's sampler. This file makes one choice for each, so
its numbers are not the paper's measurement.
"""

from ml_collections import ConfigDict

from fmboost_jax.configuration import load_config
from fmboost_jax.registry import choose

VARIANTS = {"": (512, 25, 20), "x4": (256, 40, 40), "x4_25_20": (256, 25, 20)}  # low-res side, base steps, steps


def get_config(variant: str = "") -> ConfigDict:
    """The protocol of a variant: "" (×2), "x4" or "x4_25_20"."""
    config = load_config("folders.py")
    config.name = f"coco5k{':' * bool(variant)}{variant}"
    config.count = 5000
    config.high_res = 1024
    config.enlarge = True
    config.source = "prompts"
    config.low_res, config.base_steps, config.steps = choose("variant", variant, VARIANTS)
    config.metrics = ("fid", "patch-fid", "clip")
    return config
