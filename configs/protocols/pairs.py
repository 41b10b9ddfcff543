"""Super-resolution on pairs as given: a folder of low-res images beside a folder of high-res images of the same names.

    python -m fmboost_jax.evaluate --config configs/protocols/pairs.py --booster BUNDLE \
        --images HIGH --low-res LOW --out RESULTS

The test sets that the paper compares on (arXiv 2312.07360) have this form: DIV2K's and RealSR's as StableSR publishes
them, 128² → 512². `--resize bicubic` in place of the booster measures the filter. Other sizes:
`--config.high_res=1024 --config.low_res=256`.

The paper names SSIM, PSNR, FID and CLIP-IQA. It leaves open the flow's steps and solver, the network of CLIP-IQA and
how SSIM treats borders. Those of this file are ours; both kinds of SSIM are measured. docs/evaluation.md has the
published rows.
"""

from ml_collections import ConfigDict

from fmboost_jax.configuration import load_config


def get_config() -> ConfigDict:
    """The protocol."""
    config = load_config("folders.py")
    config.name = "pairs"
    config.high_res = 512
    config.low_res = 128
    config.steps = 40
    config.metrics = ("ssim", "ssim-torchmetrics", "psnr", "fid", "clip-iqa")
    return config
