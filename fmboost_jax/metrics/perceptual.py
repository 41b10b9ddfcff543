"""Perceptual metrics of pairs of images: LPIPS and SSIMULACRA 2, from the packages that implement them."""

import functools
import io
import os

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, UInt8
from PIL import Image
from safetensors import SafetensorError
from safetensors.flax import load_file

from fmboost_jax.errors import InputError
from fmboost_jax.models.parameters import Parameters, merge, split

LPIPS_HUB = "tux-type/jaxlpips"
LPIPS_FILES = ("alexnet_features.safetensors", "alexnet_lpips.safetensors")


class LPIPS:
    """LPIPS version 0.1 with AlexNet's features, from the package `jaxlpips`.

    Source: Zhang et al. 2018, arXiv 1801.03924, equation 1. It is 0 for equal images.

    Args:
        folder: folder with `LPIPS_FILES`. Default: the hub's `LPIPS_HUB`.

    Attributes:
        parameters: weights.
        function: jitted function of (parameters, images, originals), images in [−1, 1], that returns (b,).

    Raises:
        InputError: the package is not installed, or the weights are missing.
    """

    def __init__(self, folder: str = ""):
        graph, self.parameters = split(_load_lpips(folder))
        self.function = functools.partial(_lpips, graph)


def _load_lpips(folder: str) -> nnx.Module:
    try:
        import jaxlpips
        from jaxlpips.modules import AlexNetFeatures
        from jaxlpips.utils import to_nnx
    except ImportError as error:
        raise InputError("lpips needs the package jaxlpips: pip install 'fmboost_jax[eval]'") from error

    class Local(jaxlpips.LPIPS):
        """LPIPS with weights from a folder; the package's constructor reads them from the hub only."""

        def __init__(self, features: dict[str, Array], linear: dict[str, Array]):
            self.pretrained_network = "alexnet"
            self.model = to_nnx(features, lambda: AlexNetFeatures(rngs=nnx.Rngs(0)))
            self.linear_weights = nnx.List([nnx.Param(weights) for weights in linear.values()])

    if not folder:
        folder = _lpips_from_hub()
    try:
        return Local(*(load_file(os.path.join(folder, name)) for name in LPIPS_FILES))
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"lpips weights {folder}: expected {' and '.join(LPIPS_FILES)} of huggingface.co/{LPIPS_HUB} ({error})"
        ) from error


def _lpips_from_hub() -> str:
    import huggingface_hub

    try:
        return huggingface_hub.snapshot_download(LPIPS_HUB, allow_patterns=list(LPIPS_FILES))
    # The hub's client raises exceptions of many types.
    except Exception as error:
        raise InputError(
            f"lpips: the weights cannot be fetched from the hub ({type(error).__name__}); put "
            f"{' and '.join(LPIPS_FILES)} of huggingface.co/{LPIPS_HUB} into a folder and set lpips.path to it"
        ) from error


@functools.partial(jax.jit, static_argnums=0)
def _lpips(
    graph: nnx.GraphDef, parameters: Parameters, images: Float[Array, "b h w 3"], originals: Float[Array, "b h w 3"]
) -> Float[Array, "b"]:
    with jax.default_matmul_precision("highest"):
        return merge(graph, parameters)(images, originals).reshape(len(images))


def ssimulacra2(image: UInt8[np.ndarray, "h w 3"], original: UInt8[np.ndarray, "h w 3"]) -> float:
    """Return SSIMULACRA 2 by the package `ssimulacra2`: 100 for equal images, 90 if differences are hard to see.

    It runs on the CPU in float64. Source: Sneyers 2022, "SSIMULACRA 2 – structural similarity unveiling local and
    compression related artifacts".

    Raises:
        InputError: the package is not installed.
    """
    try:
        from ssimulacra2 import compute_ssimulacra2
    except ImportError as error:
        raise InputError("ssimulacra2 needs the package ssimulacra2: pip install 'fmboost_jax[eval]'") from error
    return float(compute_ssimulacra2(_png(original), _png(image)))


def _png(image: UInt8[np.ndarray, "h w 3"]) -> io.BytesIO:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG", compress_level=1)
    return file
