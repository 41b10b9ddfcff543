"""Boosting from Python: low-res latents (or photographs) in, large images out.

booster = Booster.load("runs/demo")                 # a training run, a bundle's folder or its hub id
images = booster.upscale(photographs, factor=2)     # uint8 (b, h, w, 3) → (b, 2h, 2w, 3)
"""

import dataclasses
import math
import os
import warnings
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, UInt8

from fmboost_jax.boosting.bundle import is_bundle, read_bundle
from fmboost_jax.boosting.program import flow_from_keys
from fmboost_jax.boosting.run import read_run
from fmboost_jax.errors import InputError
from fmboost_jax.flow.coupling import Coupling, pixel_space_upsample
from fmboost_jax.flow.solvers import Solver
from fmboost_jax.images.resize import upsample
from fmboost_jax.images.value_range import to_float, to_uint8
from fmboost_jax.interop.autoencoders import load_first_stage
from fmboost_jax.interop.hub import local_folder
from fmboost_jax.models.first_stage import FirstStage
from fmboost_jax.models.networks import VelocityNetwork, abstract_network
from fmboost_jax.models.parameters import merge, split
from fmboost_jax.parallel.batching import map_batches
from fmboost_jax.parallel.mesh import make_mesh
from fmboost_jax.parallel.sharding import batch_sharding, example_sharding

# Scaled latents have a standard deviation near 1. SD 1.x' unscaled ones have 5.5, FLUX.1's 2.8; SD's scaled twice 0.18.
USUAL_DEVIATIONS = (0.3, 2.5)


class Booster:
    """A trained flow with its first stage.

    Args:
        unet: the velocity network.
        first_stage: the autoencoder whose latents it was trained on.
        coupling: how its flow starts.
        factor: by how much it was trained to enlarge.
        devices: those to work on, each with a copy of the weights; the first one of all unless told.
        spatial: so many devices share the height of one image, for images that one has no memory for; the batch is
            shared by the others.

    Raises:
        InputError: `spatial` does not divide the number of devices.
    """

    def __init__(
        self,
        unet: VelocityNetwork,
        first_stage: FirstStage,
        coupling: Coupling,
        factor: int,
        *,
        devices: Sequence[jax.Device] | None = None,
        spatial: int = 1,
    ):
        devices = jax.devices()[:1] if devices is None else list(devices)
        self.mesh = make_mesh({"data": -1, "fsdp": 1, "spatial": spatial}, devices)
        everywhere = NamedSharding(self.mesh, PartitionSpec())
        self.graph, parameters = split(unet)
        self.parameters = jax.device_put(parameters, everywhere)
        self.first_stage = first_stage.to(everywhere)
        self.unet_config, self.coupling, self.factor = unet.config, coupling, factor

    @classmethod
    def load(
        cls,
        directory: str | os.PathLike,
        *,
        step: int | None = None,
        dtype: str | None = None,
        first_stage: str | None = None,
        devices: Sequence[jax.Device] | None = None,
        spatial: int = 1,
    ) -> "Booster":
        """A booster from a bundle or a training run: its averaged weights, and what its config says.

        Args:
            directory: a bundle's folder, a run's working directory, its `checkpoints` folder, one step's folder, or
                the hub id of a bundle (`owner/name`, needs huggingface_hub).
            step: which checkpoint of a run; the latest unless told.
            dtype: "float32" or "bfloat16" to compute in; as it was trained unless told.
            first_stage: folder or hub id of the autoencoder's weights, where they are no longer where they were.
            devices, spatial: see the class; `devices=jax.devices()` shares every batch among all.

        Raises:
            InputError: nothing of the kind there, a first stage that cannot be loaded or does not fit, or `spatial`
                does not divide the number of devices.
        """
        folder = local_folder(os.fspath(directory), "booster")
        if is_bundle(folder):
            if step is not None:
                raise InputError(f"bundle {directory} holds the weights of one step; step {step} was asked for")
            parameters, config = read_bundle(folder)
            stage = load_first_stage(config.latents.kind, first_stage or config.latents.path)
            config.latents.check(stage.spec, f"first stage {stage.path}")
        else:
            parameters, config, stage = read_run(folder, step=step, first_stage=first_stage)
        unet_config = dataclasses.replace(config.unet, dtype=dtype) if dtype else config.unet
        graph = split(abstract_network(unet_config))[0]
        unet = merge(graph, parameters)
        return cls(unet, stage, config.source, config.factor, devices=devices, spatial=spatial)

    def boost(
        self,
        latents: Float[Array | np.ndarray, "b h w c"],
        *,
        steps: int = 4,
        method: str = "euler",
        seed: int | Sequence[int] = 0,
        noise_step: int | None = None,
        upsampling: str | None = None,
        batch_size: int | None = None,
    ) -> Float[Array, "b H W c"]:
        """Low-res latents → high-res latents, `factor` times as high and wide. One compiled program a shape.

        Args:
            latents: scaled, as a diffusion model gives them (`output_type="latent"`), NHWC.
            steps: intervals of the integration grid, 1 or more; 4 Euler steps are 4 network evaluations.
            method: euler, midpoint, heun, heun3, rk4 or dopri5.
            seed: image i draws its noise from seed + i, or from its own number of a sequence.
            noise_step: diffusion step of the noise augmentation, of 1000; as it was trained unless told. More noise
                lets the flow invent more and keep less.
            upsampling: "psu" (through pixels) or "lsu" (the latent itself); as it was trained unless told.
            batch_size: images at once; all of them unless told. Halved by itself where the memory does not suffice.

        Returns:
            Scaled high-res latents, float32.

        Warns:
            UserWarning: latents whose standard deviation suggests that they are unscaled, or scaled twice.

        Raises:
            InputError: channels other than the autoencoder's, a size that the UNet cannot halve, values that are not
                finite, unknown method or upsampling, or one image that does not fit into the memory.
        """
        latents = self._checked(latents)
        coupling, solver = self._coupling(noise_step, upsampling), Solver(method, steps)
        size = latents.shape[1] * self.factor, latents.shape[2] * self.factor

        def act(low, keys):
            low = self._grow(low, size) if coupling.upsampling == "psu" else low
            return self._flow(low, keys, size, coupling, solver)

        inputs = latents, _keys(seed, len(latents))
        return self._shared(act, inputs, batch_size, f"latents of {size[0]}×{size[1]}")

    def cascade(
        self,
        latents: Float[Array | np.ndarray, "b h w c"],
        boosters: Sequence["Booster"],
        *,
        intermediates: bool = False,
        **options,
    ) -> Float[Array, "b H W c"] | list[Float[Array, "b _ _ c"]]:
        """Boost by this booster, then by each of the others: 128² → 512² → 2048².

        Args:
            latents: as for `boost`.
            boosters: the later stages, in their order; all on the latents of one autoencoder.
            intermediates: return the latents of every stage, the last one included, as a list.
            options: as for `boost`, the same for every stage; `upsampling` says how latents grow in front of each.

        Returns:
            Scaled latents, larger by the product of the factors.

        Raises:
            InputError: boosters of different autoencoders; as for `boost`.
        """
        stages = [self, *boosters]
        for number, stage in enumerate(stages[1:], 2):
            self.first_stage.spec.check(stage.first_stage.spec, f"stage {number} of the cascade")
        results = []
        for stage in stages:
            latents = stage.boost(latents, **options)
            results.append(latents)
        return results if intermediates else latents

    def decode(
        self, latents: Float[Array | np.ndarray, "b h w c"], *, batch_size: int | None = None
    ) -> UInt8[np.ndarray, "b H W 3"]:
        """Scaled latents → images, `batch_size` at once."""
        size = "×".join(str(side * self.first_stage.downsampling) for side in latents.shape[1:3])
        return self._shared(self._images, [latents], batch_size, f"an image of {size} pixels to decode")

    def upscale(
        self,
        images: UInt8[np.ndarray, "b h w 3"],
        factor: int | None = None,
        *,
        steps: int = 4,
        method: str = "euler",
        seed: int | Sequence[int] = 0,
        noise_step: int | None = None,
        batch_size: int | None = None,
    ) -> UInt8[np.ndarray, "b H W 3"]:
        """Photographs → `factor` times as high and wide; edges repeated to a size that the UNet takes, then cropped.

        Args:
            images: of one size.
            factor: what the booster was trained for, unless told.
            steps, method, seed, noise_step, batch_size: as for `boost`.

        Raises:
            InputError: a factor that it was not trained for; as for `boost`.
        """
        if factor is not None and factor != self.factor:
            raise InputError(f"this booster was trained to enlarge ×{self.factor}; a factor of {factor} was asked for")
        coupling, solver = self._coupling(noise_step, None), Solver(method, steps)
        height, width = (side * self.factor for side in images.shape[1:3])
        multiple = self._image_multiple()
        images = _pad(images, multiple * self.mesh.shape["spatial"], multiple)
        size = images.shape[1] * self.factor, images.shape[2] * self.factor
        latent_size = size[0] // self.first_stage.downsampling, size[1] // self.first_stage.downsampling

        def act(pixels, keys):
            grown = upsample(pixels, size, "bilinear") if coupling.upsampling == "psu" else pixels
            grown = jax.device_put(grown, self._sharding(grown.shape))
            low = self.first_stage.encode(grown)
            return self._images(self._flow(low, keys, latent_size, coupling, solver))

        inputs = to_float(images), _keys(seed, len(images))
        return self._shared(act, inputs, batch_size, f"an image of {size[0]}×{size[1]} pixels")[:, :height, :width]

    @property
    def size_multiple(self) -> int:
        """What the sides of low-res latents must be multiples of for the network to halve them once they have grown."""
        multiple = self.unet_config.size_multiple
        return multiple // math.gcd(multiple, self.factor)

    def check_size(self, height: int, width: int) -> None:
        """Refuse low-res latents that the network cannot halve once they have grown.

        Raises:
            InputError: sides that do not fit.
        """
        unit = self.size_multiple
        if height % unit or width % unit:
            raise InputError(
                f"low-res latents of {height}×{width}: this network needs sides that are multiples of {unit} "
                f"({unit * self.first_stage.downsampling} pixels of the small image)"
            )

    def _shared(self, act, inputs, batch_size: int | None, example: str):
        """`act` on parts of the inputs, each shared among the devices: images over `data`, heights over `spatial`."""

        def placed(*part):
            part = [jax.device_put(array, self._sharding(array.shape)) for array in part]
            with jax.set_mesh(self.mesh):
                return act(*part)

        count = len(inputs[0])
        size = count if batch_size is None else min(batch_size, count)
        return map_batches(placed, inputs, size, multiple=self.mesh.shape["data"], example=example)

    def _sharding(self, shape: tuple[int, ...]) -> NamedSharding:
        spatial = self.mesh.shape["spatial"]
        if len(shape) > 1 and shape[1] % spatial:
            raise InputError(
                f"{spatial} devices cannot share a height of {shape[1]}: it must be a multiple of {spatial}; give "
                "another size or a smaller spatial"
            )
        return batch_sharding(self.mesh) if len(shape) > 1 else example_sharding(self.mesh)

    def _images(self, latents: Array) -> UInt8[np.ndarray, "b H W 3"]:
        return to_uint8(np.asarray(self.first_stage.decode(latents)))

    def _coupling(self, noise_step: int | None, upsampling: str | None) -> Coupling:
        """The coupling of the training with the given overrides."""
        overrides = {"noise_step": noise_step, "upsampling": upsampling}
        return dataclasses.replace(self.coupling, **{k: v for k, v in overrides.items() if v is not None})

    def _image_multiple(self) -> int:
        """What the sides of a small image must be multiples of for the autoencoder and the UNet to halve them."""
        stage = self.first_stage.downsampling
        enlarged = stage * self.unet_config.size_multiple
        needed = -(-enlarged // self.factor)
        return needed if self.coupling.upsampling == "psu" else -(-needed // stage) * stage

    def _checked(self, latents) -> Array:
        latents = jnp.asarray(latents, jnp.float32)
        stage = self.first_stage
        if latents.ndim != 4 or latents.shape[-1] != stage.channels or not latents.size:
            raise InputError(
                f"latents must be (batch, height, width, {stage.channels}) for this booster's {stage.kind} "
                f"autoencoder, found {latents.shape}; PyTorch's (batch, channels, height, width) needs a transpose"
            )
        self.check_size(*latents.shape[1:3])
        if not bool(jnp.isfinite(latents).all()):
            raise InputError("the latents hold NaN or infinite values; nothing can be boosted from them")
        deviation = float(jnp.std(latents))
        if stage.spec.scaling_factor != 1 and not USUAL_DEVIATIONS[0] < deviation < USUAL_DEVIATIONS[1]:
            warnings.warn(
                f"the latents' standard deviation is {deviation:.2f}, expected about 1: boost takes scaled latents, "
                f"(latent − {stage.spec.shift_factor}) · {stage.spec.scaling_factor}, scaled once",
                stacklevel=3,
            )
        return latents

    def _grow(self, latents: Array, size: tuple[int, int]) -> Array:
        """PSU of scaled latents: through pixels."""
        return pixel_space_upsample(latents, size, self.first_stage.encode, self.first_stage.decode)

    def _flow(self, low: Array, keys: Array, size: tuple[int, int], coupling: Coupling, solver: Solver):
        return flow_from_keys(self.graph, self.parameters, low, keys, size=size, coupling=coupling, solver=solver)


def _keys(seed: int | Sequence[int], count: int) -> Array:
    seeds = [seed + i for i in range(count)] if isinstance(seed, int) else list(seed)
    if len(seeds) != count:
        raise InputError(f"{count} images need as many seeds, found {len(seeds)}")
    return jnp.stack([jax.random.key(s) for s in seeds])


def _pad(images: np.ndarray, down: int, right: int) -> np.ndarray:
    height, width = images.shape[1:3]
    return np.pad(images, ((0, 0), (0, -height % down), (0, -width % right), (0, 0)), mode="edge")
