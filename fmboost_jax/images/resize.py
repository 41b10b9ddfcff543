"""Resizing: of images and latents as PyTorch does it, by exact area averaging, and of 8-bit images by Pillow."""

from typing import Any, TypeAlias

import jax.numpy as jnp
import numpy as np
from jax.export import is_symbolic_dim
from jaxtyping import Array, Float, Int, UInt8
from PIL import Image

from fmboost_jax.errors import InputError
from fmboost_jax.registry import unknown


def shrink(image: Float[Array, "b h w c"], size: int) -> Float[Array, "b size size c"]:
    """A smaller image, each pixel the mean of the area that it covers.

    Bilinear interpolation would read only 2×2 of the 4×4 pixels of one target pixel at ×4, and fine detail would
    alias.
    """
    rows, columns = (_coverage(side, size) for side in image.shape[1:3])
    return jnp.einsum("Hh,Ww,bhwc->bHWc", rows, columns, image, precision="highest")


def _coverage(before: int, after: int) -> Float[np.ndarray, "after before"]:
    """The share of each of `before` pixels in each of `after` equal parts of a side."""
    edges, pixels = np.linspace(0, before, after + 1), np.arange(before)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    return (overlap.clip(0) * after / before).astype(np.float32)


def resize_pixels(image: UInt8[np.ndarray, "h w *c"], size: tuple[int, int]) -> UInt8[np.ndarray, "H W *c"]:
    """Resize an 8-bit image (or one channel of it) to (height, width), bicubically and antialiased, by Pillow."""
    return np.asarray(Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BICUBIC))


MODES = ("nearest", "bilinear", "bicubic", "identity", "noise")


# A number; or a symbol, in a program for any size (`jax.export.symbolic_shape`).
Side: TypeAlias = Any


def upsample(
    latent: Float[Array, "b h w c"],
    size: Side | tuple[Side, Side],
    mode: str,
    noise: Float[Array, "b H W c"] | None = None,
) -> Float[Array, "b H W c"]:
    """Resize a latent (or an image) to `size`, float32.

    Modes:
        nearest, bilinear, bicubic: as PyTorch's `interpolate` does: half-pixel centres, cubic a = −0.75, edges clamped,
            no antialiasing when the size shrinks.
        identity: the latent has the size already, as PSU latents do.
        noise: each position becomes a block; its first (top left) pixel carries the latent and the rest is `noise`, so
            unit variance stays unit variance. The size must be a whole multiple.

    Args:
        latent: NHWC.
        size: (height, width), or one number for a square.
        mode: one of the above.
        noise: standard normal, of the resulting shape; for mode "noise" only.

    Raises:
        InputError: unknown mode, a size that the mode cannot reach, or noise that is missing or of another shape.
    """
    height, width = size if isinstance(size, tuple) else (size, size)
    before = latent.shape[1:3]
    latent = latent.astype(jnp.float32)
    match mode:
        case "nearest":
            return latent[:, _nearest(before[0], height)][:, :, _nearest(before[1], width)]
        case "bilinear" | "bicubic":
            rows, columns = _resize_matrix(before[0], height, mode), _resize_matrix(before[1], width, mode)
            tall = jnp.einsum("Hh,bhwc->bHwc", rows, latent, precision="highest")
            return jnp.einsum("Ww,bHwc->bHWc", columns, tall, precision="highest")
        case "identity":
            if before != (height, width):
                raise InputError(
                    f"upsampling mode 'identity' keeps a latent's size: expected {height}×{width}, found "
                    f"{before[0]}×{before[1]}; choose another mode or upsample in pixels (PSU)"
                )
            return latent
        case "noise":
            return _noise_upsample(latent, (height, width), noise)
    raise unknown("upsampling mode", mode, MODES)


def _nearest(before: Side, after: Side) -> Int[Array | np.ndarray, "after"]:
    """Source index of each target position. In float32, as PyTorch computes it: its rounding shows at some sizes."""
    if is_symbolic_dim(before) or is_symbolic_dim(after):
        index: Any = jnp.arange(after) * before // after
        return index
    index = np.floor(np.arange(after, dtype=np.float32) * np.float32(before / after)).astype(np.int32)
    return np.minimum(index, before - 1)


def _linear(distance):
    return (1 - abs(distance)).clip(0)


def _cubic(distance, a=-0.75):
    """Keys, "Cubic convolution interpolation for digital image processing", 1981, with PyTorch's a."""
    d = abs(distance)
    near = ((a + 2) * d - (a + 3)) * d**2 + 1
    far = a * (((d - 5) * d + 8) * d - 4)
    return near * (d <= 1) + far * ((d > 1) & (d < 2))


_KERNELS = {"bilinear": (_linear, range(2)), "bicubic": (_cubic, range(-1, 3))}


def _resize_matrix(before: Side, after: Side, mode: str) -> Float[Array | np.ndarray, "after before"]:
    """The weights of every source position in every target position along one axis.

    A constant in float64 precision; or, where the sizes are symbols, computed in the program.
    """
    kernel, taps = _KERNELS[mode]
    xp: Any = jnp if is_symbolic_dim(before) or is_symbolic_dim(after) else np
    position = (xp.arange(after) + 0.5) * before / after - 0.5
    left = xp.floor(position).astype(int)
    matrix: Any = 0
    for tap in taps:
        reads = (left + tap).clip(0, before - 1)[:, None] == xp.arange(before)
        matrix += reads * kernel(position - (left + tap))[:, None]
    return matrix.astype(np.float32)


def _noise_upsample(latent, size, noise):
    (height, width), (h, w) = size, latent.shape[1:3]
    shape = (latent.shape[0], height, width, latent.shape[3])
    if height % h or width % w:
        raise InputError(f"upsampling mode 'noise' needs a whole multiple of {h}×{w}, found {height}×{width}")
    if noise is None or noise.shape != shape:
        found = "none" if noise is None else noise.shape
        raise InputError(f"upsampling mode 'noise' needs standard normal noise of shape {shape}, found {found}")
    return noise.astype(jnp.float32).at[:, :: height // h, :: width // w].set(latent)
