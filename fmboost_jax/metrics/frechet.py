"""The Fréchet distance between two sets of images, in the features of a network.

Source: Heusel et al. 2017, arXiv 1706.08500, equation 6; Dowson and Landau 1982 for the distance of two Gaussians. With
the features of the Inception network of December 2015 it is the FID. Distances in the features of other networks are
not comparable with it and have other names.
"""

import io
import os
import warnings
import zipfile

import numpy as np
from jaxtyping import Array, Float, UInt8

from fmboost_jax.errors import InputError
from fmboost_jax.files import write_atomically
from fmboost_jax.images.photos import random_square


class FeatureStatistics:
    """Running mean and covariance of feature vectors, in float64.

    Parts are merged by Chan, Golub and LeVeque 1979 (equation 2.1), which is accurate for means far from 0.

    Args:
        dimensions: length of a feature vector.
    """

    def __init__(self, dimensions: int):
        self.count = 0
        self.mean = np.zeros(dimensions)
        self._scatter = np.zeros((dimensions, dimensions))

    @property
    def dimensions(self) -> int:
        """Length of a feature vector."""
        return len(self.mean)

    @property
    def covariance(self) -> Float[np.ndarray, "d d"]:
        """Unbiased covariance, Σ (x − mean)(x − mean)ᵀ / (count − 1).

        Raises:
            InputError: fewer than two vectors.
        """
        if self.count < 2:
            raise InputError(f"a covariance needs 2 images or more, found {self.count}; give more images")
        return self._scatter / (self.count - 1)

    def update(self, features: Float[Array | np.ndarray, "n d"]) -> None:
        """Add vectors.

        Raises:
            InputError: values that are not finite.
        """
        features = np.asarray(features, np.float64)
        if not np.isfinite(features).all():
            raise InputError("features are not finite; check the feature network's weights and the images")
        part = FeatureStatistics(self.dimensions)
        part.count = len(features)
        if part.count:
            part.mean = features.mean(axis=0)
            part._scatter = (features - part.mean).T @ (features - part.mean)
            self.merge(part)

    def merge(self, other: "FeatureStatistics") -> None:
        """Add the vectors of other statistics."""
        count = self.count + other.count
        if not count:
            return
        shift = other.mean - self.mean
        self._scatter += other._scatter + np.outer(shift, shift) * (self.count * other.count / count)
        self.mean = self.mean + shift * (other.count / count)
        self.count = count

    def save(self, path: str | os.PathLike) -> None:
        """Write an `.npz` file atomically. `load` restores equal values."""
        content = io.BytesIO()
        np.savez(content, count=self.count, mean=self.mean, scatter=self._scatter)
        write_atomically(path, content.getvalue())

    @classmethod
    def load(cls, path: str | os.PathLike) -> "FeatureStatistics":
        """Read a file that `save` wrote.

        Raises:
            InputError: the file is missing or damaged, or has other content.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                statistics = cls(len(file["mean"]))
                statistics.count = int(file["count"])
                statistics.mean, statistics._scatter = file["mean"], file["scatter"]
                if statistics._scatter.shape != (statistics.dimensions, statistics.dimensions):
                    raise ValueError("shapes of mean and scatter differ")
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise InputError(f"feature statistics {path}: cannot be read ({error}); delete the file") from error
        return statistics


def frechet_distance(statistics: FeatureStatistics, reference: FeatureStatistics) -> float:
    """Return |μ₁ − μ₂|² + tr Σ₁ + tr Σ₂ − 2 tr (Σ₁ Σ₂)^½, the squared Fréchet distance of two Gaussians.

    With Σ = F Fᵀ, (Σ₁ Σ₂)^½ and (F₁ᵀ Σ₂ F₁)^½ have the same trace: the sum of the singular values of F₁ᵀ F₂. The
    factors come from symmetric eigendecompositions, without eigenvalues that are numerically 0. The general square root
    of Σ₁ Σ₂ (`scipy.linalg.sqrtm`) is complex or fails if a covariance is singular, and it takes roots of rounding
    errors: 1e-16 becomes 1e-8 for each dimension without variance.

    Raises:
        InputError: features of different lengths, or statistics of fewer than two images.

    Warns:
        UserWarning: fewer images than features; the covariance is singular and the distance too large.
    """
    if statistics.dimensions != reference.dimensions:
        raise InputError(
            f"statistics of {statistics.dimensions} features against {reference.dimensions}: use one network for both"
        )
    fewest = min(statistics.count, reference.count)
    if 2 <= fewest <= statistics.dimensions:
        warnings.warn(
            f"{fewest} images for {statistics.dimensions} features: the covariance is singular, and the Fréchet "
            "distance decreases with the number of images; compare only distances of equally many images",
            stacklevel=2,
        )
    factors = [_factor(side.covariance) for side in (statistics, reference)]
    shared = np.linalg.svd(factors[0].T @ factors[1], compute_uv=False).sum()
    traces = np.trace(statistics.covariance) + np.trace(reference.covariance)
    difference = statistics.mean - reference.mean
    return float(max(difference @ difference + traces - 2 * shared, 0.0))


def _factor(covariance: Float[np.ndarray, "d d"]) -> Float[np.ndarray, "d r"]:
    """Return F with F Fᵀ = Σ for a positive semidefinite Σ; F has a column for each direction with variance."""
    values, vectors = np.linalg.eigh(covariance)
    kept = values > np.finfo(np.float64).eps * len(values) * max(values[-1], 0.0)
    return vectors[:, kept] * np.sqrt(values[kept])


def patches(
    image: UInt8[np.ndarray, "h w 3"], name: str, *, size: int, count: int, seed: int = 0
) -> UInt8[np.ndarray, "n size size 3"]:
    """Return random square crops of an image without resizing, for a distance of patches.

    Args:
        image: image with sides of at least `size` pixels.
        name: name of the image. The positions depend on it and on `seed`, so both images of a pair have the same crops.
        size: side of a crop in pixels.
        count: number of crops.
        seed: seed of the crops.

    Raises:
        InputError: the image is smaller than a crop.
    """
    height, width = image.shape[:2]
    if min(height, width) < size:
        raise InputError(f"image {name} of {width}×{height} pixels is smaller than a patch of {size}×{size}")
    squares = [random_square(width, height, size, 1.0, f"{seed}/{number}/{name}") for number in range(count)]
    return np.stack([image[top : top + size, left : left + size] for left, top, _ in squares])
