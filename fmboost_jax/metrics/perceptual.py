"""Perceptual distances of pairs of images, through the packages that keep them: LPIPS and SSIMULACRA 2."""

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
    """LPIPS with AlexNet's features, version 0.1, through the package `jaxlpips`.

    Source: Zhang et al. 2018, arXiv 1801.03924, equation 1. Smaller is more alike; 0 for equal images.

    Args:
        folder: holds `LPIPS_FILES`; fetched from the hub (`LPIPS_HUB`) unless told.

    Attributes:
        parameters: its weights.
        function: (parameters, images, originals) → (b,), images in [−1, 1], jitted.

    Raises:
        InputError: the package is not installed, or the weights are not here.
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
        """With weights from a folder; the package's own constructor knows the hub alone."""

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
    # The hub's client fails in as many ways as the network does; all mean the same to the person who waits.
    except Exception as error:
        raise InputError(
            f"lpips: the hub did not give its weights ({type(error).__name__}); fetch {' and '.join(LPIPS_FILES)} of "
            f"huggingface.co/{LPIPS_HUB} into a folder and set lpips.path to it"
        ) from error


@functools.partial(jax.jit, static_argnums=0)
def _lpips(
    graph: nnx.GraphDef, parameters: Parameters, images: Float[Array, "b h w 3"], originals: Float[Array, "b h w 3"]
) -> Float[Array, "b"]:
    with jax.default_matmul_precision("highest"):
        return merge(graph, parameters)(images, originals).reshape(len(images))


def ssimulacra2(image: UInt8[np.ndarray, "h w 3"], original: UInt8[np.ndarray, "h w 3"]) -> float:
    """SSIMULACRA 2 through the package `ssimulacra2`: 100 for equal images, 90 hardly tells them apart, below 50 poor.

    On the CPU, in float64. Source: Sneyers 2022, "SSIMULACRA 2 – structural similarity unveiling local and compression
    related artifacts".

    Raises:
        InputError: the package is not installed.
    """
    try:
        from ssimulacra2 import compute_ssimulacra2
    except ImportError as error:
        raise InputError("ssimulacra2 needs the package of that name: pip install 'fmboost_jax[eval]'") from error
    return float(compute_ssimulacra2(_png(original), _png(image)))


def _png(image: UInt8[np.ndarray, "h w 3"]) -> io.BytesIO:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG", compress_level=1)
    return file
