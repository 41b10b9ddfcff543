"""Initial weights, loss and train step of `fmboost_jax.train_autoencoder`."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
from flax import nnx
from jaxtyping import Array, Float, UInt8
from safetensors.numpy import save

from fmboost_jax.errors import InputError
from fmboost_jax.files import atomic_folder, write_atomically
from fmboost_jax.images.grid import grid
from fmboost_jax.images.resize import shrink, upsample
from fmboost_jax.images.value_range import to_uint8
from fmboost_jax.interop.autoencoders import autoencoder_state_dict, load_first_stage
from fmboost_jax.models.autoencoder_tiny import LATENT_BOUND, AutoencoderTiny, to_patches
from fmboost_jax.models.first_stage import Autoencoder, LatentSpec
from fmboost_jax.models.parameters import Parameters, merge, split
from fmboost_jax.training.config import AutoencoderLossConfig, AutoencoderTrainingConfig
from fmboost_jax.training.evaluation import SCORES
from fmboost_jax.training.finish import root_mean_square
from fmboost_jax.training.optimizer import clip_by_global_norm, guarded
from fmboost_jax.training.perceptual import load_perceptual_network, perceptual_distance, perceptual_maps
from fmboost_jax.training.state import TrainState

LIFT = 4.0  # bias of components in deviations, for the ReLU
ENLARGEMENTS = (2, 4)  # of latents and of small images, whose decoding is trained too


@dataclasses.dataclass(frozen=True)
class FrozenFlow:
    """A trained flow whose results a decoder is trained on.

    Attributes:
        factor: its enlargement.
        run: (parameters, small images (b, h, w, 3) in [-1, 1], encode, key) → raw high-res latents (b, H, W, c), where
            `encode` maps images to raw latents.
        parameters: of the flow, an argument of the train step, not constants of its program.
    """

    factor: int
    run: Callable[[Parameters, Array, Callable[[Array], Array], Array], Array]
    parameters: Parameters


def initial_parameters(config: AutoencoderTrainingConfig, images: UInt8[np.ndarray, "n h w 3"]) -> Parameters:
    """Initial weights that compute the principal components of patches exactly.

    The encoder's first convolution computes one component per channel, with unit variance and a bias that makes it
    positive for the ReLU. Residual branches end in zeros. The latents are the first components, and the decoder is the
    inverse. Training therefore starts from the best linear code of patches. Other kernels have PyTorch's values times
    √6, which preserves the variance behind a ReLU (He et al. 2015, arXiv 1502.01852, equation 10).

    Args:
        config: with the sections `autoencoder` and `loss`, and `seed`.
        images: images whose patches define the components.

    Raises:
        InputError: an architecture that cannot represent these weights.
    """
    architecture = config.autoencoder
    channels, width, scale = architecture.latent_channels, architecture.width, config.loss.deviation
    if len(architecture.encoder_blocks) != 1 or not channels <= width <= architecture.patch_channels:
        raise InputError(
            f"autoencoder of {len(architecture.encoder_blocks)} levels, {channels} latent channels and width {width}: "
            f"expected 1 level, patch_size doing all of the downsampling, and latent_channels ≤ width ≤ "
            f"{architecture.patch_channels}"
        )
    mean, deviations, directions = principal_components(images, architecture.patch_size, width)
    parameters = {
        name: np.array(array) * (0.0 if name.endswith("bias") or ".conv3." in name else 6**0.5)
        for name, array in split(AutoencoderTiny(architecture, rngs=nnx.Rngs(config.seed)))[1].items()
    }
    code = np.arange(channels)

    def set_centre(name: str, kernel, bias) -> None:
        parameters[f"{name}.kernel"][...] = 0.0
        parameters[f"{name}.kernel"][1, 1] = kernel
        parameters[f"{name}.bias"][...] = bias

    set_centre("encoder.levels.0.conv", directions / deviations, LIFT - mean @ directions / deviations)
    set_centre("encoder.conv_out", scale * np.eye(width, channels), -scale * LIFT)
    parameters["decoder.conv_in.kernel"][..., code] = 0.0
    parameters["decoder.conv_in.kernel"][1, 1, code, code] = 1 / scale
    parameters["decoder.conv_in.bias"][...] = LIFT
    back = np.where(np.arange(width)[:, None] < channels, (directions * deviations).T, 0.0)
    set_centre("decoder.levels.0.conv", back, mean - LIFT * back.sum(axis=0))
    return {name: jnp.asarray(array, jnp.float32) for name, array in parameters.items()}


def load_initial(config: AutoencoderTrainingConfig) -> tuple[Parameters, LatentSpec]:
    """The weights of the autoencoder in `config.train.init_from`, float32, and the spec of its latents.

    Raises:
        InputError: there is none, or it has another architecture.
    """
    stage = load_first_stage("tiny", config.train.init_from)
    found = stage.model
    scale = {"scaling_factor": config.autoencoder.scaling_factor, "shift_factor": config.autoencoder.shift_factor}
    if dataclasses.replace(found.config, **scale) != config.autoencoder:
        raise InputError(
            f"train.init_from {config.train.init_from}: expected the architecture {config.autoencoder}, found "
            f"{found.config}"
        )
    return {name: jnp.asarray(array, jnp.float32) for name, array in split(found)[1].items()}, stage.spec


def principal_components(images: UInt8[np.ndarray, "n h w 3"], patch_size: int, count: int):
    """Mean (d,), deviations (count,) and directions (d, count) of patches in [0, 1], greatest deviation first."""
    patches = np.asarray(to_patches(jnp.asarray(images / 255), patch_size), np.float64)
    patches = patches.reshape(-1, patches.shape[-1])
    values, vectors = np.linalg.eigh(np.cov(patches, rowvar=False))
    return patches.mean(axis=0), np.sqrt(values[::-1][:count]), vectors[:, ::-1][:, :count]


def decaying_optimizer(config: AutoencoderTrainingConfig) -> optax.GradientTransformationExtraArgs:
    """Muon for the kernels, Adam for the biases, their rates falling to 0 along a cosine over the whole run.

    Muon's steps have equal length in all directions of a kernel, so that directions of small gradients are learnt,
    too: 450 steps reached a lower loss than 1,200 of Adam.

    Sources: Jordan et al. 2024 (Muon); Loshchilov and Hutter 2017, arXiv 1608.03983, equation 5, without restarts.
    """
    optim, steps = config.optim, config.train.steps

    def rate(peak: float) -> optax.Schedule:
        return optax.warmup_cosine_decay_schedule(0.0, peak, min(optim.warmup_steps, steps - 1), steps)

    muon = optax.contrib.muon(
        rate(optim.lr),
        beta=optim.momentum,
        adam_b1=optim.b1,
        adam_b2=optim.b2,
        adam_learning_rate=rate(optim.bias_lr),
        muon_weight_dimension_numbers=_matrices,
    )
    return guarded(optax.chain(clip_by_global_norm(optim.clip_norm), muon))


def _matrices(params: Any) -> Any:
    """How each kernel is a matrix, from patches to output channels; None for biases, and for what a mask hides."""
    patch_to_channels = optax.contrib.MuonDimensionNumbers(reduction_axis=(0, 1, 2), output_axis=3)
    return {name: patch_to_channels if jnp.ndim(array) == 4 else None for name, array in params.items()}


def make_train_step(
    config: AutoencoderTrainingConfig,
    graph: nnx.GraphDef[AutoencoderTiny],
    optimizer: optax.GradientTransformationExtraArgs,
    flows: Sequence[FrozenFlow] = (),
):
    """The function (state, uint8 images, parameters of each flow) → (state, metrics), to be jitted, the state donated.

    A step whose loss or gradient is not finite leaves parameters, average and optimiser as they were.
    """
    features = load_perceptual_network() if config.loss.perceptual else None

    def loss_fn(parameters: Parameters, image: Array, key: Array, frozen: Sequence[Parameters]):
        if config.train.decoder_only:
            parameters = {
                name: jax.lax.stop_gradient(array) if name.startswith("encoder.") else array
                for name, array in parameters.items()
            }
        autoencoder = merge(graph, parameters)
        latent = autoencoder.encode(image)[0]
        noise = config.loss.latent_noise * jax.random.normal(key, latent.shape)
        decoded = autoencoder.decode(latent + noise)
        quarter = max(1, len(image) // 4)

        def distance(decoded: Array, image: Array) -> Array:
            total = picture_loss(decoded - image, config.loss)
            if config.loss.rmse:
                total += config.loss.rmse * root_mean_square(decoded - image)
            if features is not None:
                maps = (perceptual_maps(features, images[:quarter]) for images in (decoded, image))
                total += config.loss.perceptual * perceptual_distance(*maps)
            return total

        loss = distance(decoded, image) + config.loss.moments * moments_loss(latent, config.loss.deviation)
        for i, (flow, weights) in enumerate(zip(flows, frozen, strict=True)):
            part = jnp.roll(image, -i * quarter, axis=0)[:quarter]
            small = shrink(part, part.shape[1] // flow.factor)
            boosted = flow.run(weights, small, lambda x: autoencoder.encode(x)[0], jax.random.fold_in(key, i))
            loss += config.loss.boosted * distance(autoencoder.decode(jax.lax.stop_gradient(boosted)), part)
        for i, factor in enumerate(ENLARGEMENTS):
            part = jnp.roll(image, -i * quarter, axis=0)[:quarter]
            if config.loss.enlarged:
                loss += config.loss.enlarged * enlargement_loss(autoencoder, part, factor, config.loss)
            if config.loss.blurred:
                blurred = enlarge(shrink(part, part.shape[1] // factor), factor)
                loss += config.loss.blurred * distance(autoencoder.decode(autoencoder.encode(blurred)[0]), blurred)
        return loss

    def train_step(state: TrainState, pixels: UInt8[Array, "b h w 3"], frozen: Sequence[Parameters] = ()):
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)
        loss, gradient = jax.value_and_grad(loss_fn)(state.parameters, pixels / 127.5 - 1, key, frozen)
        return state.apply_gradient(loss, gradient, optimizer, config.ema)

    return train_step


def moments_loss(latent: Float[Array, "b h w c"], deviation: float) -> Float[Array, ""]:
    """Distance of the latents' mean and covariance from 0 and `deviation`² · 1.

    The covariance term (Bardes et al. 2022, arXiv 2105.04906, equation 4, here with the variances in it) decorrelates
    the channels.
    """
    positions = latent.reshape(-1, latent.shape[-1]) / deviation
    mean, covariance = jnp.mean(positions, axis=0), jnp.cov(positions, rowvar=False)
    return jnp.sum(mean**2) + jnp.sum((covariance - jnp.eye(len(mean))) ** 2)


def enlargement_loss(
    autoencoder: Autoencoder, image: Float[Array, "b h w 3"], factor: int, loss: AutoencoderLossConfig
) -> Float[Array, ""]:
    """Distance between the decoded enlarged latent of a small image and the enlarged small image, both bilinear.

    A decoder not trained on enlarged latents decodes them to blocks. The idea is Kouzelis et al. 2025
    (EQ-VAE, arXiv 2502.09509, equation 4), here for enlarging instead of shrinking and turning.
    """
    small = nnx.avg_pool(image, (factor, factor), strides=(factor, factor))
    latent = enlarge(autoencoder.encode(small)[0], factor)
    return picture_loss(autoencoder.decode(latent) - enlarge(small, factor), loss)


def enlarge(x: Float[Array, "b h w c"], factor: int) -> Float[Array, "b H W c"]:
    """Bilinear."""
    return upsample(x, (factor * x.shape[1], factor * x.shape[2]), "bilinear")


def picture_loss(difference: Float[Array, "b h w 3"], loss: AutoencoderLossConfig) -> Float[Array, ""]:
    """L1 of a difference and of its gradients, at sizes 1, 1/2, 1/4, …, `loss.scales` of them.

    The small sizes train the colours, which the L1 of pixels learns last; the gradients keep edges sharp without a
    pretrained network (Mathieu et al. 2016, arXiv 1511.05440, equation 6, here with exponent 1).
    """
    total = jnp.zeros(())
    for _ in range(loss.scales):
        total += jnp.mean(jnp.abs(difference))
        for axis in (1, 2):
            total += loss.gradient * jnp.mean(jnp.abs(jnp.diff(difference, axis=axis)))
        difference = nnx.avg_pool(difference, (2, 2), strides=(2, 2))
    return total


def evaluate(autoencoder: AutoencoderTiny, images: Float[np.ndarray, "n h w 3"]):
    """PSNR, SSIM and sharpness (gradient energy over the original's) of the round trip, and a grid of some images."""
    decoded, latents = round_trip(autoencoder, images)
    scores = {name: float(np.mean(score(decoded, images))) for name, score in SCORES.items()}
    scores |= {
        "latent_mean": float(np.mean(latents)),
        "latent_deviation": float(np.std(latents)),
    }
    rows = zip(to_uint8(images[:GRID_ROWS]), to_uint8(decoded[:GRID_ROWS]), strict=True)
    return scores, grid([list(row) for row in rows], ["original", "round trip"])


def round_trip(autoencoder: AutoencoderTiny, images: Float[np.ndarray, "n h w 3"]):
    """Decoded images, clipped to [−1, 1], and unscaled latents, one image at a time."""
    graph, parameters = split(autoencoder)
    both = [_round_trip(graph, parameters, image[None]) for image in images]
    return tuple(np.concatenate(arrays) for arrays in zip(*both, strict=True))


@jax.jit(static_argnums=0)
def _round_trip(graph, parameters, image):
    autoencoder = merge(graph, parameters)
    latent = autoencoder.encode(image)[0]
    return jnp.clip(autoencoder.decode(latent), -1, 1), latent


GRID_ROWS = 4


def latent_scale(autoencoder: AutoencoderTiny, images: Float[np.ndarray, "n h w 3"]) -> tuple[float, float]:
    """Scaling factor and shift with which the latents of these images have mean 0 and deviation 1."""
    _, latents = round_trip(autoencoder, images)
    return round(float(1 / np.std(latents)), 4), round(float(np.mean(latents)), 4)


def write_autoencoder(folder: str, autoencoder: AutoencoderTiny, scale: tuple[float, float]) -> None:
    """A diffusers folder: float16 weights, and a config with the scaling factor and the shift of the latents.

    Raises:
        InputError: the folder exists.
    """
    architecture = dataclasses.asdict(autoencoder.config)
    levels, channels = len(architecture["encoder_blocks"]), autoencoder.config.patch_channels
    config = {
        "_class_name": "AutoencoderTiny",
        "in_channels": channels,
        "out_channels": channels,
        "patch_size": architecture["patch_size"],
        "latent_channels": architecture["latent_channels"],
        "encoder_block_out_channels": [architecture["width"]] * levels,
        "decoder_block_out_channels": [architecture["width"]] * levels,
        "num_encoder_blocks": architecture["encoder_blocks"],
        "num_decoder_blocks": architecture["decoder_blocks"],
        "act_fn": "relu",
        "upsampling_scaling_factor": 2,
        "latent_magnitude": LATENT_BOUND,
        "latent_shift": 0.5,
        "scaling_factor": scale[0],
        "shift_factor": scale[1],
    }
    tensors = autoencoder_state_dict(autoencoder, "diffusers")
    with atomic_folder(folder) as partial:
        half = {name: np.ascontiguousarray(tensor, np.float16) for name, tensor in tensors.items()}
        write_atomically(partial / "diffusion_pytorch_model.safetensors", save(half))
        write_atomically(partial / "config.json", json.dumps(config, indent=2).encode())
