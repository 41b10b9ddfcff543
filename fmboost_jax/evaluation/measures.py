"""Every metric that a protocol asks for, on batches of images, over all devices."""

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, UInt8

from fmboost_jax.errors import InputError
from fmboost_jax.evaluation import checksums
from fmboost_jax.evaluation.protocol import Protocol
from fmboost_jax.metrics.clip import CLIPScore
from fmboost_jax.metrics.features import FeatureNetwork, load_features
from fmboost_jax.metrics.frechet import patches
from fmboost_jax.metrics.images import WINDOW, psnr, ssim
from fmboost_jax.metrics.perceptual import LPIPS, ssimulacra2
from fmboost_jax.parallel.batching import data_parallel

Picture = UInt8[np.ndarray, "_ _ 3"]


class Measures:
    """The networks of a protocol's metrics, loaded, and the metrics by name.

    Args:
        protocol: says which.
        mesh: the devices that share the images of a batch; CLIP and SSIMULACRA 2 run on the host.
        weights: file of the feature network's weights; where they usually are if empty.

    Attributes:
        network: of the features, or None where no distance between sets is asked for.
        feature_weights: checksum of the network's, or "".

    Raises:
        InputError: a package or weights that are not here.
    """

    def __init__(self, protocol: Protocol, mesh: Mesh, weights: str = ""):
        self._protocol = protocol
        self._paired = {}
        asked = protocol.metrics
        if "psnr" in asked:
            self._paired["psnr"] = data_parallel(_psnr, None, mesh, protocol.batch_size)
        if "ssim" in asked:
            self._paired["ssim"] = data_parallel(_ssim, None, mesh, protocol.batch_size)
        if "lpips" in asked:
            lpips = LPIPS(protocol.lpips.path)
            self._paired["lpips"] = data_parallel(
                lambda parameters, *images: lpips.function(parameters, *map(_to_unit, images)),
                lpips.parameters,
                mesh,
                protocol.batch_size,
            )
        self._clip = CLIPScore(protocol.clip.path) if "clip" in asked else None
        self.network: FeatureNetwork | None = None
        self.feature_weights = ""
        if protocol.feature_sets:
            self.network = load_features(protocol.features, weights or None)
            self.feature_weights = checksums.of_parameters(self.network.parameters)
            self._features = data_parallel(self.network.function, self.network.parameters, mesh, protocol.batch_size)

    def rows(
        self, names: list[str], images: list[Picture], originals: list[Picture] | None, captions: dict[str, str]
    ) -> list[dict[str, float | str]]:
        """The metrics of each image: {"name": …, "psnr": …, …}.

        Args:
            names: of the images.
            images: what is evaluated; sizes may differ.
            originals: one an image, of the image's size; None where no metric compares with them.
            captions: by name, where clip is asked for.

        Raises:
            InputError: images too small for a metric.
        """
        rows: list[dict] = [{"name": name} for name in names]
        for group in _by_size(images):
            stacked = np.stack([images[index] for index in group])
            values = {}
            if self._protocol.paired:
                if "ssim" in self._paired and min(stacked.shape[1:3]) < WINDOW:
                    raise InputError(f"image {names[group[0]]}: ssim needs {WINDOW}×{WINDOW} pixels or more")
                truth = np.stack([originals[index] for index in group])
                values = {name: function(stacked, truth) for name, function in self._paired.items()}
                if "ssimulacra2" in self._protocol.metrics:
                    values["ssimulacra2"] = [ssimulacra2(a, b) for a, b in zip(stacked, truth, strict=True)]
            if self._clip:
                values["clip"] = self._clip(stacked, [captions[names[index]] for index in group])
            for name, column in values.items():
                for index, value in zip(group, column, strict=True):
                    rows[index][name] = float(value)
        return rows

    def features(self, names: list[str], images: list[Picture]) -> dict[str, np.ndarray]:
        """Feature vectors for each distance between sets, by its name.

        Raises:
            InputError: an image smaller than a patch.
        """
        found = {}
        for name, patch in self._protocol.feature_sets.items():
            parts = []
            for group in _by_size(images):
                stacked = [images[index][None] for index in group]
                if patch is not None:
                    size, count = patch
                    seed = self._protocol.seed
                    stacked = [patches(images[i], names[i], size=size, count=count, seed=seed) for i in group]
                parts.append(self._features(np.concatenate(stacked)))
            found[name] = np.concatenate(parts) if parts else np.zeros((0, self.network.dimensions), np.float32)
        return found


def _by_size(images: list[Picture]) -> list[list[int]]:
    """The images' numbers, those of one size together."""
    groups: dict[tuple, list[int]] = {}
    for index, image in enumerate(images):
        groups.setdefault(image.shape, []).append(index)
    return list(groups.values())


def _to_unit(images: UInt8[Array, "b h w 3"]) -> Array:
    return images / 127.5 - 1.0


@jax.jit
def _psnr(_, images, originals):
    return psnr(_to_unit(images), _to_unit(originals))


@jax.jit
def _ssim(_, images, originals):
    return ssim(_to_unit(images), _to_unit(originals))
