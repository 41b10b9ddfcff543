"""The metrics of a protocol, for batches of images, on all devices."""

import numpy as np
from jax.sharding import Mesh
from jaxtyping import UInt8

from fmboost_jax.errors import InputError
from fmboost_jax.evaluation import checksums
from fmboost_jax.evaluation.protocol import Protocol
from fmboost_jax.metrics.features import FeatureNetwork, load_features
from fmboost_jax.metrics.frechet import patches
from fmboost_jax.metrics.table import METRICS, MetricSettings
from fmboost_jax.parallel.batching import data_parallel

Pixels = UInt8[np.ndarray, "_ _ 3"]


class Metrics:
    """The metrics of a protocol, with their networks.

    Args:
        protocol: protocol of the evaluation.
        mesh: devices that share a batch; SSIMULACRA 2 runs on the host, CLIP in PyTorch.
        weights: file of the feature network's weights. Default: see `fmboost_jax.metrics.features.load_features`.

    Attributes:
        network: feature network; None without metrics of two sets.
        feature_weights: checksum of its weights, or "".

    Raises:
        InputError: missing packages or weights.
    """

    def __init__(self, protocol: Protocol, mesh: Mesh, weights: str = ""):
        self._protocol = protocol
        paths = {"lpips": protocol.lpips.path, "clip": protocol.clip.path}
        settings = MetricSettings(mesh, protocol.batch_size, paths)
        chosen = {name: METRICS[name] for name in protocol.metrics if METRICS[name].kind != "set"}
        self._scores = {name: metric.score(settings) for name, metric in chosen.items()}
        self._smallest = max(((metric.smallest, name) for name, metric in chosen.items()), default=(1, ""))
        self.network: FeatureNetwork | None = None
        self.feature_weights = ""
        if protocol.feature_sets:
            self.network = load_features(protocol.features, weights or None)
            self.feature_weights = checksums.of_parameters(self.network.parameters)
            self._features = data_parallel(self.network.function, self.network.parameters, mesh, protocol.batch_size)

    def rows(
        self, names: list[str], images: list[Pixels], originals: list[Pixels] | None, captions: dict[str, str]
    ) -> list[dict[str, float | str]]:
        """Return the metrics of each image: {"name": …, "psnr": …, …}.

        Args:
            names: names of the images.
            images: images to evaluate; their sizes may differ.
            originals: original of each image, of equal size; None if no metric needs them.
            captions: captions by name, for CLIP.

        Raises:
            InputError: an image is too small for a metric.
        """
        rows: list[dict] = [{"name": name} for name in names]
        for group in _by_size(images):
            stacked = np.stack([images[index] for index in group])
            least, metric = self._smallest
            if min(stacked.shape[1:3]) < least:
                raise InputError(f"image {names[group[0]]}: {metric} needs {least}×{least} pixels or more")
            values = {}
            for name, score in self._scores.items():
                match METRICS[name].kind:
                    case "paired" if originals is not None:
                        values[name] = score(stacked, np.stack([originals[index] for index in group]))
                    case "text":
                        values[name] = score(stacked, [captions[names[index]] for index in group])
                    case "single":
                        values[name] = score(stacked)
            for name, column in values.items():
                for index, value in zip(group, column, strict=True):
                    rows[index][name] = float(value)
        return rows

    @property
    def dimensions(self) -> int:
        """Length of a feature vector; 0 without metrics of two sets."""
        return self.network.dimensions if self.network else 0

    def features(self, names: list[str], images: list[Pixels]) -> dict[str, np.ndarray]:
        """Return feature vectors for each metric of two sets, by its name.

        Raises:
            InputError: an image is smaller than a patch.
        """
        features = {}
        for name, patch in self._protocol.feature_sets.items():
            parts = []
            for group in _by_size(images):
                stacked = [images[index][None] for index in group]
                if patch is not None:
                    size, count = patch
                    seed = self._protocol.seed
                    stacked = [patches(images[i], names[i], size=size, count=count, seed=seed) for i in group]
                parts.append(self._features(np.concatenate(stacked)))
            features[name] = np.concatenate(parts) if parts else np.zeros((0, self.dimensions), np.float32)
        return features


def _by_size(images: list[Pixels]) -> list[list[int]]:
    """Group the indices of images by their size."""
    groups: dict[tuple, list[int]] = {}
    for index, image in enumerate(images):
        groups.setdefault(image.shape, []).append(index)
    return list(groups.values())
