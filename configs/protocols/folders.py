"""Two folders of images, or one to boost: images keep their sizes. The other protocols start from this file.

    python -m fmboost_jax.evaluate --images BOOSTED --reference ORIGINALS --out RESULTS
    python -m fmboost_jax.evaluate --images PHOTOS --booster BUNDLE --out RESULTS \
        --config.high_res=192 --config.low_res=96

Numbers are comparable only with those of the same config, see docs/evaluation.md. This file has all fields.
"""

from ml_collections import ConfigDict

from fmboost_jax.configuration import defaults
from fmboost_jax.evaluation.protocol import Protocol


def get_config() -> ConfigDict:
    """A protocol's config."""
    config = defaults(Protocol)
    config.name = "folders"
    config.seed = 0  # of the choice of images, degradations, patches, the base model and the flow's noise

    # --- which images ---
    config.count = 0  # images, drawn by seed and name where there are more; 0 for all
    config.high_res = 0  # side of the square cut from the middle of each image and resized; 0 keeps all sizes
    config.high_res_filter = "lanczos"
    config.enlarge = False  # whether images smaller than high_res are enlarged; they are skipped where not

    # --- what is boosted ---
    config.source = "photographs"  # the images, made small; or "prompts": what a base model makes of their captions
    config.low_res = 0  # side of the small image
    config.low_res_filter = "bicubic"
    config.degradation = "none"  # "jpeg" and "blur_noise" go further: fmboost_jax.evaluation.degradations
    config.base_steps = 25  # of the base model
    config.guidance = 7.5
    config.steps = 4  # of the flow
    config.method = "euler"
    config.colour_fix = "none"  # of boosted photographs; "consistency" is the default of `sample` and `Booster.upscale`

    # --- what is measured ---
    config.metrics = ("psnr", "ssim", "fid")  # also lpips, ssimulacra2, clip, clip-iqa, patch-fid
    config.features = "inception"  # of fid and patch-fid; "efficientnet-lite0" gives a distance under its own name
    config.patches = ((512, 4),)  # of patch-fid: (side, random crops an image), one distance each
    config.lpips.path = ""  # folder of its weights; the hub's where empty
    config.clip.path = "openai/clip-vit-large-patch14"  # of clip and clip-iqa: folder or hub id

    config.batch_size = 4  # images at once
    config.num_threads = 4  # that read images
    return config
