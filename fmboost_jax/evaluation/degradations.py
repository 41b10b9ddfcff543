"""Degraded low-res images: resized, compressed, blurred and noisy, like those of cameras and the web.

Each depends on the image, its name and a seed only, so it is the same on any machine and in any order.
"""

import hashlib
import io

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image
from scipy.signal import fftconvolve
from scipy.special import j1

FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
DEGRADATIONS = ("none", "jpeg", "blur_noise")

# Real-ESRGAN's first order (Wang et al. 2021, arXiv 2107.10833, section 3.1 and the settings of section 4.1).
KERNEL_SIZES = (7, 9, 11, 13, 15, 17, 19, 21)
BLUR_SIGMA = (0.2, 3.0)
SINC_PROBABILITY = 0.1
KERNEL_SHAPES = ("gaussian", "generalized", "plateau")
KERNEL_PROBABILITIES = (0.7, 0.15, 0.15)
GENERALIZED_BETA, PLATEAU_BETA = (0.5, 4.0), (1.0, 2.0)
# Probability of equal axes. Absolute probabilities are 0.45, 0.12, 0.12 for equal axes, 0.25, 0.03, 0.03 for unequal.
ISOTROPIC = {"gaussian": 0.45 / 0.7, "generalized": 0.8, "plateau": 0.8}
RESIZE_FILTERS = ("box", "bilinear", "bicubic")
GAUSSIAN_NOISE_PROBABILITY, GREY_NOISE_PROBABILITY = 0.5, 0.4
NOISE_SIGMA, POISSON_SCALE = (1.0, 30.0), (0.05, 3.0)
JPEG_QUALITY = (30, 95)


def degrade(
    image: UInt8[np.ndarray, "h w 3"], name: str, *, size: int, kind: str, resize: str, seed: int
) -> UInt8[np.ndarray, "size size 3"]:
    """Return the low-res image of a square image.

    Args:
        image: the original.
        name: name of the image; random numbers depend on it and on `seed`.
        size: side of the result in pixels.
        kind: "none": resizing; "jpeg": resizing, then JPEG with a random quality in `JPEG_QUALITY`; "blur_noise":
            random blur, resizing with a random filter, Gaussian or Poisson noise, then JPEG.
        resize: filter of "none" and "jpeg", one of `FILTERS`.
        seed: see `name`.
    """
    digest = hashlib.sha256(f"{seed}/{kind}/{name}".encode()).digest()
    generator = np.random.Generator(np.random.PCG64(int.from_bytes(digest[:8], "little")))
    if kind == "blur_noise":
        values = blur(image / 255.0, random_kernel(generator))
        resize = str(generator.choice(RESIZE_FILTERS))
        low = _resized(np.round(values.clip(0, 1) * 255).astype(np.uint8), size, resize)
        low = add_noise(low, generator)
    else:
        low = _resized(image, size, resize)
    return low if kind == "none" else jpeg(low, int(generator.integers(*JPEG_QUALITY, endpoint=True)))


def _resized(image: UInt8[np.ndarray, "h w 3"], size: int, resize: str) -> UInt8[np.ndarray, "size size 3"]:
    return np.asarray(Image.fromarray(image).resize((size, size), FILTERS[resize]))


def jpeg(image: UInt8[np.ndarray, "h w 3"], quality: int) -> UInt8[np.ndarray, "h w 3"]:
    """Compress an image as JPEG with chroma subsampling 4:2:0, and decode it."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality, subsampling="4:2:0")
    return np.asarray(Image.open(file))


def blur(image: Float[np.ndarray, "h w 3"], kernel: Float[np.ndarray, "k k"]) -> Float[np.ndarray, "h w 3"]:
    """Convolve each channel, with reflected edges."""
    margin = len(kernel) // 2
    padded = np.pad(image, ((margin, margin), (margin, margin), (0, 0)), mode="reflect")
    return fftconvolve(padded, kernel[:, :, None], mode="valid", axes=(0, 1))


def add_noise(image: UInt8[np.ndarray, "h w 3"], generator: np.random.Generator) -> UInt8[np.ndarray, "h w 3"]:
    """Add Gaussian noise of random standard deviation or Poisson noise of random scale, either grey or coloured."""
    values = image / 255.0
    grey = generator.random() < GREY_NOISE_PROBABILITY
    if generator.random() < GAUSSIAN_NOISE_PROBABILITY:
        shape = (*image.shape[:2], 1 if grey else 3)
        noise = generator.normal(0, generator.uniform(*NOISE_SIGMA) / 255, shape)
    else:
        source = values.mean(axis=-1, keepdims=True) if grey else values
        noise = (generator.poisson(source * 255) / 255 - source) * generator.uniform(*POISSON_SCALE)
    return np.round((values + noise).clip(0, 1) * 255).astype(np.uint8)


def random_kernel(generator: np.random.Generator) -> Float[np.ndarray, "k k"]:
    """Return a blur kernel of odd size whose weights sum to 1."""
    size = int(generator.choice(KERNEL_SIZES))
    if generator.random() < SINC_PROBABILITY:
        # An ideal low-pass filter with a circular pass band, which causes ringing.
        return sinc_kernel(size, generator.uniform(np.pi / 3 if size < 13 else np.pi / 5, np.pi))
    shape = str(generator.choice(KERNEL_SHAPES, p=KERNEL_PROBABILITIES))
    along, across = generator.uniform(*BLUR_SIGMA, size=2)
    if generator.random() < ISOTROPIC[shape]:
        across = along
    beta = generator.uniform(*(PLATEAU_BETA if shape == "plateau" else GENERALIZED_BETA))
    return gaussian_kernel(size, along, across, generator.uniform(-np.pi, np.pi), shape, beta)


def gaussian_kernel(
    size: int, along: float, across: float, angle: float, shape: str = "gaussian", beta: float = 1.0
) -> Float[np.ndarray, "size size"]:
    """Return exp(−r²/2), "generalized" exp(−(r²)^β/2) or "plateau" 1/(1 + (r²)^β); r is in standard deviations."""
    offsets = np.arange(size) - size // 2
    x, y = np.meshgrid(offsets, offsets)
    u, v = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
    squares = (u / along) ** 2 + (v / across) ** 2
    if shape == "plateau":
        kernel = 1 / (1 + squares**beta)
    else:
        kernel = np.exp(-0.5 * squares ** (beta if shape == "generalized" else 1.0))
    return kernel / kernel.sum()


def sinc_kernel(size: int, cutoff: float) -> Float[np.ndarray, "size size"]:
    """Return the circular low-pass filter ω J₁(ω r) / (2π r) with the cutoff ω in radians per pixel."""
    offsets = np.arange(size) - size // 2
    radius = np.hypot(*np.meshgrid(offsets, offsets))
    radius[size // 2, size // 2] = 1.0
    kernel = cutoff * j1(cutoff * radius) / (2 * np.pi * radius)
    kernel[size // 2, size // 2] = cutoff**2 / (4 * np.pi)
    return kernel / kernel.sum()
