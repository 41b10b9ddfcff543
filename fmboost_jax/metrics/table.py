"""The table of metrics for the evaluation of training and for the commands `train_autoencoder` and `evaluate`.

A new metric is one more entry, in a module that is imported first (`--import`):

    from fmboost_jax.metrics.table import METRICS, Metric

    METRICS["mae"] = Metric("paired", lambda image, original: abs(image - original).mean((1, 2, 3)))
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, UInt8

from fmboost_jax.images.value_range import to_float
from fmboost_jax.metrics.clip import CLIPIQA, CLIPScore
from fmboost_jax.metrics.images import WINDOW, psnr, sharpness, ssim, ssim_torchmetrics
from fmboost_jax.metrics.perceptual import LPIPS, ssimulacra2
from fmboost_jax.parallel.batching import data_parallel

Score = Callable[..., Any]


@dataclasses.dataclass(frozen=True)
class MetricSettings:
    """Settings for loading a metric.

    Attributes:
        mesh: devices that share a batch.
        batch_size: images per batch.
        paths: folders of networks by the metric's name; "" for the default.
    """

    mesh: Mesh
    batch_size: int
    paths: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Metric:
    """A metric. It has either a function or a loader; metrics of kind "set" have neither.

    Attributes:
        kind: its arguments. "single": images. "paired": images and their originals. "text": images and captions.
            "set": two sets of images, compared by the features of a network (`fmboost_jax.metrics.features`).
        function: JAX function of images in [−1, 1], (b, h, w, 3) each, that returns (b,).
        load: for metrics with a network or from another package, a function of the settings. It returns a function of
            the same arguments as uint8 host arrays.
        unit: unit of the values.
        higher_is_better: whether larger values are better.
        smallest: minimal height and width of an image in pixels.
    """

    kind: Literal["single", "paired", "text", "set"]
    function: Callable[..., Float[Array, "b"]] | None = None
    load: Callable[[MetricSettings], Score] | None = None
    unit: str = ""
    higher_is_better: bool = True
    smallest: int = 1

    def score(self, settings: MetricSettings) -> Score:
        """Return the metric as a function of uint8 host images. JAX functions use all devices of the mesh.

        Raises:
            InputError: missing packages or weights.
        """
        if self.load is not None:
            return self.load(settings)
        function = self.function
        if function is None:
            raise ValueError(f"a metric of kind {self.kind!r} has no score for one image")

        @jax.jit
        def convert_and_apply(_, *images: UInt8[Array, "b h w 3"]):
            return function(*map(to_float, images))

        return data_parallel(convert_and_apply, None, settings.mesh, settings.batch_size)


def _load_lpips(settings: MetricSettings) -> Score:
    lpips = LPIPS(settings.paths.get("lpips", ""))

    def function(parameters, *images):
        return lpips.function(parameters, *map(to_float, images))

    return data_parallel(function, lpips.parameters, settings.mesh, settings.batch_size)


def _load_ssimulacra2(_: MetricSettings) -> Score:
    return lambda images, originals: np.array([ssimulacra2(*pair) for pair in zip(images, originals, strict=True)])


METRICS: dict[str, Metric] = {
    "psnr": Metric("paired", psnr, unit="dB"),
    "ssim": Metric("paired", ssim, smallest=WINDOW),
    "ssim-torchmetrics": Metric("paired", ssim_torchmetrics, smallest=WINDOW),
    "sharpness": Metric("paired", sharpness),
    "lpips": Metric("paired", load=_load_lpips, higher_is_better=False),
    "ssimulacra2": Metric("paired", load=_load_ssimulacra2),
    "clip-iqa": Metric("single", load=lambda settings: CLIPIQA(settings.paths["clip"])),
    "clip": Metric("text", load=lambda settings: CLIPScore(settings.paths["clip"])),
    "fid": Metric("set", higher_is_better=False),
    "patch-fid": Metric("set", higher_is_better=False),
}
