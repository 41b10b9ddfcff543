"""The Fréchet distance between two sets of images, in the features of a network.

Source: Heusel et al. 2017, arXiv 1706.08500, equation 6; Dowson and Landau 1982 for the distance of two Gaussians. With
the features of the Inception network of December 2015 it is the FID; with any other it is comparable to nothing but
itself and has a name of its own.
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
    """Mean and covariance of feature vectors that come in parts, in float64.

    Parts are merged by Chan, Golub and LeVeque 1979 (equation 2.1), which loses nothing to a mean far from 0.

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
        """The unbiased covariance, Σ (x − mean)(x − mean)ᵀ / (count − 1).

        Raises:
            InputError: fewer than two vectors.
        """
        if self.count < 2:
            raise InputError(f"a covariance needs 2 images or more, found {self.count}; give more images")
        return self._scatter / (self.count - 1)

    def update(self, features: Float[Array | np.ndarray, "n d"]) -> None:
        """Take more vectors in.

        Raises:
            InputError: values that are not finite.
        """
        features = np.asarray(features, np.float64)
        if not np.isfinite(features).all():
            raise InputError("features are not finite; look at the feature network's weights and at the images")
        part = FeatureStatistics(self.dimensions)
        part.count = len(features)
        if part.count:
            part.mean = features.mean(axis=0)
            part._scatter = (features - part.mean).T @ (features - part.mean)
            self.merge(part)

    def merge(self, other: "FeatureStatistics") -> None:
        """Take in what another one has seen."""
        count = self.count + other.count
        if not count:
            return
        shift = other.mean - self.mean
        self._scatter += other._scatter + np.outer(shift, shift) * (self.count * other.count / count)
        self.mean = self.mean + shift * (other.count / count)
        self.count = count

    def save(self, path: str | os.PathLike) -> None:
        """Write an `.npz`, whole or not at all; `load` reads it bit for bit."""
        content = io.BytesIO()
        np.savez(content, count=self.count, mean=self.mean, scatter=self._scatter)
        write_atomically(path, content.getvalue())

    @classmethod
    def load(cls, path: str | os.PathLike) -> "FeatureStatistics":
        """What `save` wrote.

        Raises:
            InputError: a file that is missing, damaged or of something else.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                statistics = cls(len(file["mean"]))
                statistics.count = int(file["count"])
                statistics.mean, statistics._scatter = file["mean"], file["scatter"]
                if statistics._scatter.shape != (statistics.dimensions, statistics.dimensions):
                    raise ValueError("mean and scatter do not fit")
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise InputError(f"feature statistics {path}: cannot be read ({error}); delete the file") from error
        return statistics


def frechet_distance(found: FeatureStatistics, reference: FeatureStatistics) -> float:
    """|μ₁ − μ₂|² + tr Σ₁ + tr Σ₂ − 2 tr (Σ₁ Σ₂)^½, the squared distance of two Gaussians.

    With Σ = F Fᵀ, (Σ₁ Σ₂)^½ and (F₁ᵀ Σ₂ F₁)^½ have the same trace: the sum of the singular values of F₁ᵀ F₂. The
    factors come from symmetric eigendecompositions, without what is numerically 0. The general square root of Σ₁ Σ₂
    (`scipy.linalg.sqrtm`) is complex or fails where the covariances are singular; here no rounding error has its root
    taken, which would make 1e-16 into 1e-8 for each dimension without variance.

    Raises:
        InputError: features of different lengths, or fewer than two images on a side.

    Warns:
        UserWarning: fewer images on a side than features: the covariance is singular and the distance too large.
    """
    if found.dimensions != reference.dimensions:
        raise InputError(
            f"statistics of {found.dimensions} features against {reference.dimensions}: use one network for both"
        )
    fewest = min(found.count, reference.count)
    if 2 <= fewest <= found.dimensions:
        warnings.warn(
            f"{fewest} images for {found.dimensions} features: the covariance is singular, and a Fréchet distance "
            "falls as images come in; compare it with one of as many images alone",
            stacklevel=2,
        )
    factors = [_factor(statistics.covariance) for statistics in (found, reference)]
    shared = np.linalg.svd(factors[0].T @ factors[1], compute_uv=False).sum()
    traces = np.trace(found.covariance) + np.trace(reference.covariance)
    difference = found.mean - reference.mean
    return float(max(difference @ difference + traces - 2 * shared, 0.0))


def _factor(covariance: Float[np.ndarray, "d d"]) -> Float[np.ndarray, "d r"]:
    """F with F Fᵀ = Σ for a positive semidefinite Σ, a column for each direction that has variance."""
    values, vectors = np.linalg.eigh(covariance)
    kept = values > np.finfo(np.float64).eps * len(values) * max(values[-1], 0.0)
    return vectors[:, kept] * np.sqrt(values[kept])


def patches(
    image: UInt8[np.ndarray, "h w 3"], name: str, *, size: int, count: int, seed: int = 0
) -> UInt8[np.ndarray, "n size size 3"]:
    """Random square crops of an image at its own resolution, for a distance between patches.

    Args:
        image: at least `size` a side.
        name: of the image; with `seed` it determines where the crops lie, so both images of a pair are cut alike.
        size: side of a crop, pixels.
        count: crops.
        seed: of the crops.

    Raises:
        InputError: an image smaller than a crop.
    """
    height, width = image.shape[:2]
    if min(height, width) < size:
        raise InputError(f"image {name} of {width}×{height} pixels is smaller than a patch of {size}×{size}")
    squares = [random_square(width, height, size, 1.0, f"{seed}/{number}/{name}") for number in range(count)]
    return np.stack([image[top : top + size, left : left + size] for left, top, _ in squares])
