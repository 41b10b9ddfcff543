"""Boosting from Python: low-res latents or images in, large images out.

booster = Booster.from_pretrained("demo-x2")        # packaged weights, a training run, a bundle's folder or hub id
large = booster(image)                              # a PIL image, an array (h, w, 3), a batch, or a list of images
"""

import dataclasses
import functools
import hashlib
import math
import os
import pathlib
import warnings
from collections.abc import Callable, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, UInt8

from fmboost_jax.boosting.bundle import is_bundle, read_bundle
from fmboost_jax.boosting.hub import Shareable
from fmboost_jax.boosting.inputs import Images, Seed, check_images, check_seeds, noise_keys
from fmboost_jax.boosting.program import flow_from_keys
from fmboost_jax.errors import InputError
from fmboost_jax.flow.boost import check_solver
from fmboost_jax.flow.coupling import Coupling, pixel_space_upsample
from fmboost_jax.flow.objectives import FlowMatching, make_objective, recommended_steps
from fmboost_jax.flow.sde import StochasticSolver
from fmboost_jax.flow.solvers import Solver
from fmboost_jax.images.resize import upsample
from fmboost_jax.images.value_range import to_float, to_uint8
from fmboost_jax.interop.autoencoders import load_first_stage
from fmboost_jax.interop.hub import local_folder
from fmboost_jax.models.first_stage import FirstStage
from fmboost_jax.models.networks import VelocityNetwork, abstract_network
from fmboost_jax.models.parameters import Parameters, count, merge, split
from fmboost_jax.parallel.batching import map_batches
from fmboost_jax.parallel.mesh import make_mesh
from fmboost_jax.parallel.sharding import batch_sharding, example_sharding

# Scaled latents have a standard deviation near 1. SD 1.x' unscaled ones have 5.5, FLUX.1's 2.8; SD's scaled twice 0.18.
USUAL_DEVIATIONS = (0.3, 2.5)


class Booster(Shareable):
    """A trained flow with its first stage. Images are returned as NumPy or PIL, latents as JAX arrays.

    Args:
        network: the velocity network.
        first_stage: the autoencoder whose latents it was trained on.
        coupling: how its flow starts.
        factor: by how much it was trained to enlarge.
        path: the path it was trained on, for stochastic sampling.
        objective: what the network was trained for, see `fmboost_jax.flow.objectives`. Default: "flow".
        steps: integration steps where a call gives none. Default: 4, or 1 for a network with two times.
        name: where it came from, for `repr`.
        devices: those to work on, each with a copy of the weights; default: the first one.
        spatial: number of devices that share the height of one image; the other devices share the batch.

    Raises:
        InputError: `spatial` does not divide the number of devices; an objective with another number of times than
            the network's.
    """

    def __init__(
        self,
        network: VelocityNetwork,
        first_stage: FirstStage,
        coupling: Coupling,
        factor: int,
        *,
        path: str = "linear",
        objective: str = "flow",
        steps: int | None = None,
        name: str = "",
        devices: Sequence[jax.Device] | None = None,  # pyright: ignore[reportInvalidTypeForm]: a variable in its stubs
        spatial: int = 1,
    ):
        devices = jax.devices()[:1] if devices is None else list(devices)
        self.mesh = make_mesh({"data": -1, "fsdp": 1, "spatial": spatial}, devices)
        everywhere = NamedSharding(self.mesh, PartitionSpec())
        self.graph, parameters = split(cast(nnx.Module, network))
        self.parameters: Parameters = jax.device_put(parameters, everywhere)
        self.first_stage = first_stage.to(everywhere)
        self.network_config, self.coupling, self.factor = network.config, coupling, factor
        self.path, self.name = path, name
        # A network with one time is sampled in one way, whatever it was trained for.
        self.objective = FlowMatching() if network.config.time_inputs == 1 else make_objective(objective)
        if self.objective.time_inputs != network.config.time_inputs:
            raise InputError(
                f"objective {objective} needs a network with {self.objective.time_inputs} time input(s), found "
                f"{network.config.time_inputs}"
            )
        self.steps = recommended_steps(self.objective) if steps is None else steps

    @classmethod
    def load(
        cls,
        directory: str | os.PathLike,
        *,
        step: int | None = None,
        dtype: str | None = None,
        first_stage: str | None = None,
        devices: Sequence[jax.Device] | None = None,  # pyright: ignore[reportInvalidTypeForm]: a variable in its stubs
        spatial: int = 1,
    ) -> "Booster":
        """Load a booster from a bundle or a training run: its averaged weights, and what its config says.

        Args:
            directory: the name of packaged weights (`demo-x2`, `demo-x4`), a bundle's folder, a run's working
                directory, its `checkpoints` folder, one step's folder, or the hub id of a bundle (`owner/name`, needs
                huggingface_hub).
            step: which checkpoint of a run; default: the latest.
            dtype: "float32" or "bfloat16" to compute in; default: as it was trained.
            first_stage: folder or hub id of the autoencoder's weights, where they have moved.
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
            # Checkpoints need orbax and grain, which a bundle does without.
            from fmboost_jax.boosting.run import read_run

            parameters, config, stage = read_run(folder, step=step, first_stage=first_stage)
        network_config: Any = config.architecture
        if dtype:
            network_config = dataclasses.replace(network_config, dtype=dtype)
        graph = split(abstract_network(network_config))[0]
        booster = cls(
            cast(VelocityNetwork, merge(graph, parameters)),
            stage,
            config.source,
            config.factor,
            path=config.path,
            objective=config.objective,
            steps=config.steps,
            name=pathlib.PurePath(directory).name,
            devices=devices,
            spatial=spatial,
        )
        booster.config = config
        return booster

    from_pretrained = load

    def __repr__(self) -> str:
        spec, coupling = self.first_stage.spec, self.coupling
        start = "noise" if coupling.start == "noise" else f"low-res latents, noise step {coupling.noise_step}"
        return (
            f"Booster({self.name or 'unnamed'}: ×{self.factor}, {count(self.parameters) / 1e6:.1f} M parameters in "
            f"{self.network_config.dtype}; {spec.kind} autoencoder {spec.path or ''}".rstrip()
            + f" of {spec.channels} channels, {spec.downsampling}× smaller; from {start}, upsampled by "
            f"{coupling.upsampling.upper()}; on {self.mesh.size} {self.mesh.devices.flat[0].platform})"
        )

    @functools.cached_property
    def fingerprint(self) -> str:
        """Identifies weights and configs by their content: equal for equal results, whatever the folder's name."""
        digest = hashlib.sha256()
        stage = self.first_stage.spec
        facts = _changed_fields(self.network_config), _changed_fields(self.coupling), self.factor
        trained = () if self.objective == FlowMatching() else (self.objective,)
        digest.update(repr((*facts, *trained, stage.scaling_factor, stage.shift_factor)).encode())
        for parameters in (self.parameters, split(self.first_stage.model)[1]):
            for name in sorted(parameters):
                digest.update(name.encode())
                digest.update(np.ascontiguousarray(np.asarray(parameters[name])).tobytes())
        return digest.hexdigest()[:16]

    def boost(
        self,
        latents: Float[Array | np.ndarray, "b h w c"],
        *,
        steps: int | None = None,
        method: str | None = None,
        solver: Solver | None = None,
        stochastic: StochasticSolver | None = None,
        guidance: float | None = None,
        seed: Seed = 0,
        noise_step: int | None = None,
        upsampling: str | None = None,
        batch_size: int | None = None,
        return_trajectory: bool = False,
    ) -> Float[Array, "b H W c"] | Float[Array, "n b H W c"]:
        """Boost low-res latents to high-res latents, `factor` times as high and wide; one compiled program a shape.

        Args:
            latents: scaled, as a diffusion model returns them (`output_type="latent"`), NHWC.
            steps: intervals of the time grid, 1 or more; default: what the booster recommends (4, or 1 for a network
                that takes whole steps). 4 Euler steps are 4 network evaluations.
            method: a fixed-grid or adaptive method of `fmboost_jax.flow.solvers`, such as midpoint or dopri5; default:
                euler.
            solver: method, steps, time grid and tolerances in one, in place of `steps` and `method`.
            stochastic: sample the SDE instead, with a booster whose flow starts from noise.
            guidance: scale of classifier-free guidance with a context of zeros; for networks that were trained to do
                without context now and then. Doubles the batch.
            seed: 0 to 2^64 − 1; image i draws its noise from seed + i, or from its own number of a sequence.
            noise_step: diffusion step of the noise augmentation, of 1000; default: as it was trained. More noise lets
                the flow invent more and keep less.
            upsampling: "psu" (through pixels) or "lsu" (the latent itself); default: as it was trained.
            batch_size: images at once; default: all. Halved automatically where the memory does not suffice.
            return_trajectory: return the latents at all points of the time grid, on a new first axis.

        Returns:
            Scaled high-res latents, float32.

        Warns:
            UserWarning: latents whose standard deviation suggests that they are unscaled, or scaled twice.

        Raises:
            InputError: channels other than the autoencoder's, a size that the network cannot halve, values that are
                not finite, an unknown method or upsampling, a result that is not finite, or one image that does not fit
                into the memory, steps that a network with two times cannot take.
        """
        latents = self._check_latents(latents)
        integrate = self._integrator(noise_step, upsampling, steps, method, solver, stochastic, guidance)
        size = latents.shape[1] * self.factor, latents.shape[2] * self.factor

        def boost_part(low: Array, keys: Array) -> Array:
            return integrate(low, keys, size, return_trajectory)

        inputs = latents, noise_keys(check_seeds(seed, len(latents)))
        result = self._in_parts(boost_part, inputs, batch_size, f"latents of {size[0]}×{size[1]}")
        return jnp.moveaxis(result, 1, 0) if return_trajectory else result

    def cascade(
        self,
        latents: Float[Array | np.ndarray, "b h w c"],
        boosters: Sequence["Booster"],
        *,
        intermediates: bool = False,
        **options: Any,
    ) -> Any:
        """Boost by this booster, then by each of the others: 128² → 512² → 2048².

        Args:
            latents: as for `boost`.
            boosters: the later stages, in their order; all on the latents of one autoencoder.
            intermediates: return the latents of every stage, the last one included, as a list.
            options: as for `boost`, the same for every stage; `upsampling` applies to the latents before each.

        Returns:
            Scaled latents (b, H, W, c), larger by the product of the factors; or a list of them.

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

    def encode(self, images: Images, *, batch_size: int | None = None) -> Float[Array, "b h w c"]:
        """Encode images of one size as scaled latents; the inverse of `decode`.

        Raw latents, as the encoder returns them and datasets store them, are `first_stage.encode_raw`'s.

        Args:
            images: as for `upscale`; their sides are multiples of the autoencoder's downsampling.
            batch_size: images at once; default: all.

        Raises:
            InputError: images of several sizes or of a size that does not fit; as for `upscale`.
        """
        checked = check_images(images)
        shapes = {array.shape for array in checked.arrays}
        height, width = checked.arrays[0].shape[:2]
        multiple = self.first_stage.downsampling
        if len(shapes) > 1:
            raise InputError("encode takes images of one size; call it once for each size")
        if height % multiple or width % multiple:
            raise InputError(
                f"images of {height}×{width}: this autoencoder needs sides that are multiples of {multiple}"
            )

        def encode_part(pixels: Array) -> Array:
            return _check_finite(self.first_stage.encode(pixels), "the encoder", self.first_stage.model)

        pixels = to_float(np.stack(checked.arrays))
        return self._in_parts(encode_part, [pixels], batch_size, f"an image of {height}×{width} pixels to encode")

    def decode(
        self, latents: Float[Array | np.ndarray, "b h w c"], *, batch_size: int | None = None
    ) -> UInt8[np.ndarray, "b H W 3"]:
        """Decode scaled latents to images; the inverse of `encode`.

        Args:
            latents: scaled, NHWC.
            batch_size: images at once; default: all.

        Raises:
            InputError: latents of another shape, latents or a result that are not finite, or one image that does not
                fit into the memory.
        """
        latents = self._check_shape(latents)
        _check_finite(latents, "the latents to decode")
        size = "×".join(str(side * self.first_stage.downsampling) for side in latents.shape[1:3])
        return self._in_parts(self._decode_part, [latents], batch_size, f"an image of {size} pixels to decode")

    def upscale(
        self,
        images: Images,
        factor: int | None = None,
        *,
        steps: int | None = None,
        method: str | None = None,
        solver: Solver | None = None,
        stochastic: StochasticSolver | None = None,
        guidance: float | None = None,
        seed: Seed = 0,
        noise_step: int | None = None,
        batch_size: int | None = None,
        return_trajectory: bool = False,
    ) -> Any:
        """Enlarge images; edges are repeated to a size that the network takes, and cropped afterwards.

        Args:
            images: a PIL image, an array (h, w, 3) or (b, h, w, 3) of uint8 in RGB order, or a list of the first two,
                of any sizes. PIL images are converted to upright sRGB; their alpha channel is resized and given back.
            factor: what the booster was trained for, or None for the same.
            steps, method, solver, stochastic, guidance, seed, noise_step, batch_size: as for `boost`.
            return_trajectory: return a list with the images at all points of the time grid.

        Returns:
            The same kind as `images`, `factor` times as high and wide; or a list of such.

        Raises:
            InputError: floats, other integers, channels first, grey or alpha in an array: the message says how to
                convert them; a factor that it was not trained for; as for `boost`.
        """
        if factor is not None and factor != self.factor:
            raise InputError(f"this booster was trained to enlarge ×{self.factor}; a factor of {factor} was asked for")
        integrate = self._integrator(noise_step, None, steps, method, solver, stochastic, guidance, encoded=True)
        checked = check_images(images)
        seeds = check_seeds(seed, len(checked.arrays))
        results: list[np.ndarray] = [np.empty(0)] * len(checked.arrays)
        for group in checked.by_size():
            batch = np.stack([checked.arrays[index] for index in group])
            part_seeds = [seeds[index] for index in group]
            large = self._upscale_batch(batch, part_seeds, batch_size, integrate, return_trajectory)
            for index, image in zip(group, large, strict=True):
                results[index] = image
        if return_trajectory:
            return [checked.restore(list(images)) for images in zip(*results, strict=True)]
        return checked.restore(results)

    __call__ = upscale

    def _upscale_batch(
        self,
        images: UInt8[np.ndarray, "b h w 3"],
        seeds: list[int],
        batch_size: int | None,
        integrate: Callable,
        return_trajectory: bool,
    ) -> UInt8[np.ndarray, "b *n H W 3"]:
        height, width = (side * self.factor for side in images.shape[1:3])
        multiple = self._image_multiple()
        images = _pad(images, multiple * self.mesh.shape["spatial"], multiple)
        size = images.shape[1] * self.factor, images.shape[2] * self.factor
        latent_size = size[0] // self.first_stage.downsampling, size[1] // self.first_stage.downsampling

        def upscale_part(pixels: Array, keys: Array) -> np.ndarray:
            grown = upsample(pixels, size, "bilinear") if self.coupling.upsampling == "psu" else pixels
            grown = jax.device_put(grown, self._sharding(grown.shape))
            low = _check_finite(self.first_stage.encode(grown), "the encoder", self.first_stage.model)
            boosted = integrate(low, keys, latent_size, return_trajectory)
            if not return_trajectory:
                return self._decode_part(boosted)
            return np.stack([self._decode_part(boosted[:, point]) for point in range(boosted.shape[1])], axis=1)

        inputs = to_float(images), noise_keys(seeds)
        example = f"an image of {size[0]}×{size[1]} pixels"
        return self._in_parts(upscale_part, inputs, batch_size, example)[..., :height, :width, :]

    @property
    def size_multiple(self) -> int:
        """What the sides of low-res latents must be multiples of for the network to halve them once they have grown."""
        multiple = self.network_config.size_multiple
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

    def coupling_with(self, noise_step: int | None = None, upsampling: str | None = None) -> Coupling:
        """The coupling it was trained with, except for what is given.

        Raises:
            InputError: a noise step outside 0 to 999, or an unknown upsampling.
        """
        given = {"noise_step": noise_step, "upsampling": upsampling}
        return dataclasses.replace(self.coupling, **{name: value for name, value in given.items() if value is not None})

    def solver_with(self, solver: Solver | None = None, steps: int | None = None, method: str | None = None) -> Solver:
        """The solver of `boost`'s arguments.

        Raises:
            InputError: a solver together with steps or a method, or values that a solver or the network refuses.
        """
        if solver is not None and (steps is not None or method is not None):
            raise InputError("give either solver=Solver(method, steps, …), or steps and method")
        chosen = solver or Solver(method or "euler", self.steps if steps is None else steps)
        check_solver(self.objective, chosen)
        return chosen

    def _integrator(
        self, noise_step, upsampling, steps, method, solver, stochastic, guidance, *, encoded: bool = False
    ) -> Callable[..., Array]:
        """A function (low-res latents, keys, size) → high-res latents; `encoded`: PSU was done before encoding."""
        coupling, ode = self.coupling_with(noise_step, upsampling), self.solver_with(solver, steps, method)
        if stochastic is not None:
            check_solver(self.objective, stochastic)
        if guidance is not None and not self.network_config.context_channels:
            raise InputError("guidance needs a network with context; this one has none")
        if stochastic is not None:
            if coupling.start != "noise":
                raise InputError(
                    "stochastic sampling needs a booster whose flow starts from noise; this one starts from low-res "
                    "latents"
                )
            if solver is not None or steps is not None or method is not None:
                raise InputError("give either stochastic=StochasticSolver(method, steps, …), or an ODE's solver")

        def integrate(low: Array, keys: Array, size: tuple[int, int], return_trajectory: bool = False) -> Array:
            if coupling.upsampling == "psu" and not encoded:
                grown = pixel_space_upsample(low, size, self.first_stage.encode, self.first_stage.decode)
                low = _check_finite(grown, "the autoencoder", self.first_stage.model)
            result = flow_from_keys(
                self.graph,
                self.parameters,
                low,
                keys,
                size=size,
                coupling=coupling,
                solver=stochastic or ode,
                objective=self.objective,
                guidance=guidance,
                return_trajectory=return_trajectory,
            )
            return _check_finite(result, "the flow", self.parameters)

        return integrate

    def _in_parts(self, function: Callable, inputs: Sequence, batch_size: int | None, example: str):
        """Call a function on parts of the inputs, split over the devices: images on `data`, heights on `spatial`."""

        def on_devices(*part):
            part = [jax.device_put(array, self._sharding(array.shape)) for array in part]
            with jax.set_mesh(self.mesh):
                return function(*part)

        count = len(inputs[0])
        size = count if batch_size is None else min(batch_size, count)
        return map_batches(on_devices, inputs, size, multiple=self.mesh.shape["data"], example=example)

    def _sharding(self, shape: tuple[int, ...]) -> NamedSharding:
        spatial = self.mesh.shape["spatial"]
        if len(shape) > 1 and shape[1] % spatial:
            raise InputError(
                f"{spatial} devices cannot share a height of {shape[1]}: it must be a multiple of {spatial}; give "
                "another size or a smaller spatial"
            )
        return batch_sharding(self.mesh) if len(shape) > 1 else example_sharding(self.mesh)

    def _decode_part(self, latents: Array) -> UInt8[np.ndarray, "b H W 3"]:
        images = _check_finite(self.first_stage.decode(latents), "the decoder", self.first_stage.model)
        return to_uint8(np.asarray(images))

    def _image_multiple(self) -> int:
        """What the sides of a small image must be multiples of for the autoencoder and the network to halve them."""
        stage = self.first_stage.downsampling
        enlarged = stage * self.network_config.size_multiple
        needed = -(-enlarged // self.factor)
        return needed if self.coupling.upsampling == "psu" else -(-needed // stage) * stage

    def _check_shape(self, latents: object) -> Array:
        try:
            array = jnp.asarray(_detached(latents), jnp.float32)
        # Other libraries' arrays raise what they like.
        except Exception as error:
            raise InputError(f"latents cannot become an array: {error}") from error
        stage = self.first_stage
        if array.ndim != 4 or array.shape[-1] != stage.channels or not array.size:
            raise InputError(
                f"latents must be (batch, height, width, {stage.channels}) for this booster's {stage.kind} "
                f"autoencoder, found {array.shape}; PyTorch's (batch, channels, height, width) needs a transpose"
            )
        return array

    def _check_latents(self, latents: object) -> Array:
        array = self._check_shape(latents)
        self.check_size(*array.shape[1:3])
        _check_finite(array, "the latents to boost")
        deviation, spec = float(jnp.std(array)), self.first_stage.spec
        if spec.scaling_factor != 1 and not USUAL_DEVIATIONS[0] < deviation < USUAL_DEVIATIONS[1]:
            warnings.warn(
                f"the latents' standard deviation is {deviation:.2f}, expected about 1: boost takes scaled latents, "
                f"(latent − {spec.shift_factor}) · {spec.scaling_factor}, scaled once",
                stacklevel=3,
            )
        return array


def _changed_fields(config: Any) -> dict[str, Any]:
    """Fields that differ from their default, so that a new field changes no fingerprint."""
    fields = {field.name: field.default for field in dataclasses.fields(config)}
    return {name: getattr(config, name) for name, default in fields.items() if getattr(config, name) != default}


def _detached(latents: Any) -> Any:
    """A PyTorch tensor without its gradient, in a type that NumPy has; other values unchanged."""
    if hasattr(latents, "detach") and hasattr(latents, "cpu"):
        return latents.detach().cpu().float().numpy()
    if np.iscomplexobj(latents):
        raise TypeError("complex numbers")
    return latents


def _check_finite(array: Array, what: str, weights: Any = None) -> Array:
    """Return an array whose values are finite.

    Args:
        array: to be checked.
        what: the latents' name, or the stage that computed them.
        weights: of that stage, a module or parameters; None for input.

    Raises:
        InputError: it has NaN or infinite values; the message names the stage, and its first such weight.
    """
    if _all_finite(array):
        return array
    if weights is None:
        raise InputError(f"{what} hold NaN or infinite values; no image can be made from them")
    parameters = weights if isinstance(weights, dict) else split(weights)[1]
    bad = [name for name in sorted(parameters) if not _all_finite(parameters[name])]
    reason = f"{len(bad)} of its weights are not finite, such as {bad[0]}" if bad else "its weights are finite"
    advice = "load them again" if bad else 'compute in float32 (dtype="float32"), and check the range of the input'
    raise InputError(f"{what} returned NaN or infinite values; {reason}; {advice}")


@jax.jit
def _all_finite(array: Array) -> Array:
    return jnp.isfinite(array).all()


def _pad(images: np.ndarray, down: int, right: int) -> np.ndarray:
    height, width = images.shape[1:3]
    return np.pad(images, ((0, 0), (0, -height % down), (0, -width % right), (0, 0)), mode="edge")
