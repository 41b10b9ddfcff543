"""The coupling: a low-res latent → the flow's start x0 and its conditioning, the context.

Both have the high-res latent's size. With SD latents and 512² → 1024²:

    low-res latent   (b,  64,  64, 4)    from the base model, or (b, 128, 128, 4) where it was upsampled in pixels (PSU)
    context          (b, 128, 128, 4)    the low-res latent upsampled; clean
    x0               (b, 128, 128, 4)    the same, noise-augmented: 0.809 · context + 0.588 · ε
    UNet's input     (b, 128, 128, 8)    x_t and context side by side on the channels; only x_t changes with t
    x1               (b, 128, 128, 4)    the high-res latent, where the flow ends

Noise augmentation is variance-preserving Gaussian noise on x0 alone, at one fixed diffusion step of 1000. "Step 400"
means ᾱ(400) = 0.6539, so x0 = √0.6539 z + √(1 − 0.6539) ε = 0.809 z + 0.588 ε. It is independent of the flow's
time t. All latents here are scaled ones (variance about 1).

Sources: arXiv 2312.07360 (coupling and noise augmentation); Hoogeboom et al., "simple diffusion", arXiv 2301.11093 (the
cosine schedule, shifted for the image's size).
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Integer, Key

from fmboost_jax.errors import InputError
from fmboost_jax.images.resize import MODES, Side, upsample
from fmboost_jax.registry import check_name, unknown

DIFFUSION_STEPS = 1000
STARTS = ("low_res", "noise")
# Pixel-space upsampling (PSU): the filter that enlarges the image, by name. The paper's is bilinear.
PSU_FILTERS = {"psu": "bilinear", "psu_bicubic": "bicubic"}
UPSAMPLINGS = (*PSU_FILTERS, "lsu")


@dataclasses.dataclass(frozen=True)
class Coupling:
    """How a low-res latent becomes x0 and context: the `source` section of a config and the upsampling of its data.

    Attributes:
        start: "low_res" or "noise", see `couple`.
        noise_step: diffusion step of the noise augmentation, 0 to 999; 400 in the paper, 0 for none.
        upsampling: how the low-res input is resized to the high-res latent's size: "psu" in pixels, bilinearly;
            "psu_bicubic" in pixels, bicubically; "lsu" in latents. A PSU latent already has that size.
        mode: interpolation of latents, "nearest", "bilinear", "bicubic" or "noise", for "lsu".
        context_mode: interpolation of the context alone, for "lsu"; `mode` is then that of x0. Default: None, as x0.

    Raises:
        InputError: a value out of its range.
    """

    start: str = "low_res"
    noise_step: int = 400
    upsampling: str = "psu"
    mode: str = "bilinear"
    context_mode: str | None = None

    def __post_init__(self):
        self.check()

    def check(self) -> None:
        """Refuse values out of their range.

        Raises:
            InputError: names the field, its range and its value.
        """
        values = {"start": STARTS, "upsampling": UPSAMPLINGS, "mode": MODES, "context_mode": (None, *MODES)}
        for field, names in values.items():
            check_name(field, getattr(self, field), names)
        if not 0 <= self.noise_step < DIFFUSION_STEPS:
            raise InputError(f"noise_step must be 0 to {DIFFUSION_STEPS - 1}, found {self.noise_step}")

    @property
    def pixel_filter(self) -> str | None:
        """Filter by which images are enlarged before they are encoded; None for "lsu"."""
        return PSU_FILTERS.get(self.upsampling)

    @property
    def resize_modes(self) -> tuple[str, str]:
        """Interpolation of the latents for x0 and for the context: "identity" for PSU, the modes for LSU."""
        if self.pixel_filter:
            return "identity", "identity"
        return self.mode, self.context_mode or self.mode

    @property
    def draws_upsampling_noise(self) -> bool:
        """Whether `couple` needs `upsampling_noise`."""
        return "noise" in self.resize_modes

    def couple(
        self,
        low_res: Float[Array, "b h w c"],
        size: Side | tuple[Side, Side],
        noise: Float[Array, "b H W c"],
        upsampling_noise: Float[Array, "b H W c"] | None = None,
    ) -> tuple[Float[Array, "b H W c"], Float[Array, "b H W c"]]:
        """Return x0 and context; arguments and errors as for the function `couple`."""
        mode, context_mode = self.resize_modes
        return couple(
            low_res,
            size=size,
            start=self.start,
            noise_step=self.noise_step,
            mode=mode,
            context_mode=context_mode,
            noise=noise,
            upsampling_noise=upsampling_noise,
        )


def cosine_alpha_bar(steps: int = DIFFUSION_STEPS, image_size: int = 64) -> Float[Array, "steps"]:
    """ᾱ of the cosine schedule: the signal's share of the variance, 1 at step 0 and almost 0 at the last.

    log ᾱ/(1 − ᾱ) = −2 ln(tan(πs/2) + 1e-5) + 2 ln(64 / image_size) for s = linspace(0, 1, steps). The method keeps
    `image_size` at 64 for all latent sizes.
    """
    s = np.linspace(0, 1, steps)
    log_snr = -2 * np.log(np.tan(np.pi * s / 2) + 1e-5) + 2 * np.log(64 / image_size)
    return jnp.asarray(1 / (1 + np.exp(-log_snr)), jnp.float32)


def noise_augment(
    latent: Float[Array, "b h w c"], step: int | Int[Array, ""], noise: Float[Array, "b h w c"]
) -> Float[Array, "b h w c"]:
    """√ᾱ(step) · latent + √(1 − ᾱ(step)) · noise, float32.

    Args:
        latent: scaled latent.
        step: diffusion step, 0 (no noise) to 999 (pure noise); a traced step is clamped to the range.
        noise: standard normal.

    Raises:
        InputError: a step (not traced) outside 0 to 999.
    """
    if not isinstance(step, jax.Array) and not 0 <= step < DIFFUSION_STEPS:
        raise InputError(f"noise augmentation step {step} is outside 0 to {DIFFUSION_STEPS - 1}; the paper uses 400")
    alpha_bar = cosine_alpha_bar()[step]
    return jnp.sqrt(alpha_bar) * latent + jnp.sqrt(1 - alpha_bar) * noise


def source_keys(keys: Key[Array, "b"]) -> tuple[Key[Array, "b"], Key[Array, "b"]]:
    """Two independent keys for each example: for the noise of x0, and for noise upsampling."""
    noise_keys, upsampling_keys = jax.vmap(lambda key: jax.random.split(key, 2))(keys).T
    return noise_keys, upsampling_keys


def record_keys(seed: int, records: Integer[Array, "b"]) -> Key[Array, "b"]:
    """A key for each record of a dataset that keeps its noise (reflow)."""
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), records)


def sample_noise(keys: Key[Array, "b"], shape: tuple) -> Float[Array, "b *shape"]:
    """Standard normal noise of `shape` for each example from its own key; do not reuse the keys.

    Dimensions may be symbolic, as in a program exported for any size.
    """
    return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)


def sample_noise_field(
    keys: Key[Array, "b"], offsets: Int[Array, "b 2"], shape: tuple[int, int, int]
) -> Float[Array, "b h w c"]:
    """Standard normal noise of windows of an unbounded field, one field a key; overlapping windows agree.

    Args:
        keys: one an example; do not reuse them.
        offsets: row and column of each window's upper left position, 0 or more.
        shape: height, width and channels of a window.
    """

    def window(key, offset):
        rows, columns = (start + jnp.arange(length) for start, length in zip(offset, shape[:2], strict=True))
        row_keys = jax.vmap(jax.random.fold_in, (None, 0))(key, rows)
        position_keys = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))(row_keys, columns)
        return sample_noise(position_keys.reshape(-1), shape[2:]).reshape(shape)

    return jax.vmap(window)(keys, offsets)


def pixel_space_upsample(
    latent: Float[Array, "b h w c"],
    size: Side | tuple[Side, Side],
    encode: Callable[[Array], Array],
    decode: Callable[[Array], Array],
    pixel_filter: str = "bilinear",
) -> Float[Array, "b H W c"]:
    """PSU: decode, resize the image by the factor of the latent, encode.

    The paper's choice (arXiv 2312.07360): images interpolate better than an autoencoder's latents.

    Args:
        latent: in the scale that `decode` expects.
        size: the result's (height, width), or one number for a square.
        encode: image (b, f·H, f·W, 3) → latent (b, H, W, c).
        decode: latent (b, h, w, c) → image (b, f·h, f·w, 3).
        pixel_filter: of the enlargement, "bilinear" or "bicubic". Default: "bilinear", as in the paper.
    """
    height, width = size if isinstance(size, tuple) else (size, size)
    image = decode(latent)
    pixels = image.shape[1] * height // latent.shape[1], image.shape[2] * width // latent.shape[2]
    return encode(upsample(image, pixels, pixel_filter))


def couple(
    low_res: Float[Array, "b h w c"],
    *,
    size: Side | tuple[Side, Side],
    start: str,
    noise_step: int | Int[Array, ""],
    mode: str,
    noise: Float[Array, "b H W c"],
    context_mode: str | None = None,
    upsampling_noise: Float[Array, "b H W c"] | None = None,
) -> tuple[Float[Array, "b H W c"], Float[Array, "b H W c"]]:
    """x0 and context of a low-res latent; the module's table shows them side by side.

    Args:
        low_res: scaled low-res latent; PSU latents already have `size` (mode "identity").
        size: the high-res latent's (height, width), or one number for a square.
        start: "low_res": x0 is the upsampled latent, noise-augmented; "noise": x0 is the noise itself, as in ordinary
            conditional generation.
        noise_step: diffusion step of the augmentation, 400 in the paper, 0 for none; without effect with start "noise".
        mode: how to upsample, see `upsample`.
        noise: standard normal, of the high-res latent's shape.
        context_mode: how to upsample the context. Default: None, as x0.
        upsampling_noise: standard normal, of the high-res latent's shape and independent of `noise`; for the mode
            "noise" only.

    Returns:
        x0, context.

    Raises:
        InputError: an unknown start, noise of another shape, or an error of `upsample` or `noise_augment`.
    """
    context = upsample(low_res, size, context_mode or mode, upsampling_noise)
    if noise.shape != context.shape:
        raise InputError(f"noise has shape {noise.shape}, expected the high-res latent's {context.shape}")
    match start:
        case "low_res":
            same = context_mode in (None, mode)
            upsampled = context if same else upsample(low_res, size, mode, upsampling_noise)
            return noise_augment(upsampled, noise_step, noise), context
        case "noise":
            return noise.astype(jnp.float32), context
    raise unknown("start", start, STARTS)
