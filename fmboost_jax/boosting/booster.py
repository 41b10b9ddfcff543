"""Boosting from Python: low-res latents or images in, large images out.

booster = Booster.from_pretrained("photo-x2")        # packaged weights, a training run, a bundle's folder or hub id
large = booster(image)                              # a PIL image, an array (h, w, 3), a batch, or a list of images
"""

import dataclasses
import functools
import math
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, UInt, UInt8

from fmboost_jax.boosting.checks import check_finite, latents_array, warn_of_scale
from fmboost_jax.boosting.fingerprint import changed_fields, fingerprint
from fmboost_jax.boosting.hub import Shareable
from fmboost_jax.boosting.inputs import Images, Seed, check_images, check_seeds, noise_keys
from fmboost_jax.boosting.program import jitted_flow
from fmboost_jax.boosting.upscaling import enlarge_images
from fmboost_jax.boosting.weights import read_weights
from fmboost_jax.errors import InputError
from fmboost_jax.flow.boost import check_solver
from fmboost_jax.flow.coupling import Coupling, pixel_space_upsample
from fmboost_jax.flow.objectives import FlowMatching, recommended_steps, sampling_objective
from fmboost_jax.flow.sde import StochasticSolver
from fmboost_jax.flow.solvers import Solver
from fmboost_jax.images.colour import FIXES, fix_colour
from fmboost_jax.images.resize import upsample
from fmboost_jax.images.value_range import to_float, to_integers
from fmboost_jax.models.first_stage import FirstStage, LatentStatistics
from fmboost_jax.models.networks import VelocityNetwork
from fmboost_jax.models.parameters import Parameters, count, rounded, split
from fmboost_jax.parallel.batching import map_on_mesh
from fmboost_jax.parallel.mesh import make_mesh
from fmboost_jax.parallel.sharding import array_sharding
from fmboost_jax.registry import check_name


class Booster(Shareable):
    """A trained flow with its first stage. Images are returned as NumPy or PIL, latents as JAX arrays.

    Args:
        network: the velocity network.
        first_stage: the autoencoder whose latents it was trained on.
        coupling: how its flow starts.
        factor: the enlargement that it was trained for.
        path: the path it was trained on, for stochastic sampling.
        objective: what the network was trained for, see `fmboost_jax.flow.objectives`. Default: "flow".
        steps: default number of integration steps. Default: 4, or 1 for a network with two times.
        statistics: of the latents it was trained on, to recognise latents of another scale. Default: not known.
        consistency: default of `decode_boosted`, 0 to 1. Default: 0.
        name: where it came from, for `repr`.
        devices: devices that share the batch, each with a copy of the weights; default: the first one.
        spatial: number of devices that share the height of one image; the other devices share the batch.

    Raises:
        InputError: `spatial` does not divide the number of devices, or the objective is not the network's.
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
        statistics: LatentStatistics | None = None,
        consistency: float = 0.0,
        name: str = "",
        devices: Sequence[jax.Device] | None = None,  # pyright: ignore[reportInvalidTypeForm]: a variable in its stubs
        spatial: int = 1,
    ):
        devices = jax.devices()[:1] if devices is None else list(devices)
        self.mesh = make_mesh({"data": -1, "fsdp": 1, "spatial": spatial}, devices)
        everywhere = NamedSharding(self.mesh, PartitionSpec())
        self.graph, parameters = split(cast(nnx.Module, network))
        self.parameters: Parameters = jax.device_put(parameters, everywhere)
        self._rounded = rounded(self.graph, self.parameters)
        self.first_stage = first_stage.to(everywhere)
        self.network_config, self.coupling, self.factor = network.config, coupling, factor
        self.path, self.name, self.statistics, self.consistency = path, name, statistics, consistency
        self.objective = sampling_objective(objective, network.config.time_inputs)
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
        """Load a booster from a bundle or a training run: its averaged weights and its config.

        Args:
            directory: packaged weights (`photo-x2`, `photo-x4`), a bundle's folder, a run's working directory, its
                `checkpoints` folder, one step's folder, or a bundle's hub id (`owner/name`; needs huggingface_hub).
            step: which checkpoint of a run; default: the latest.
            dtype: "float32" or "bfloat16" that network and autoencoder compute in; default: as they were trained.
            first_stage: folder or hub id of the autoencoder's weights; default: the one in the config.
            devices, spatial: see the class; `devices=jax.devices()` shares every batch among all.

        Raises:
            InputError: the path holds neither a bundle nor a run, or the first stage does not fit; as for the class.
        """
        network, stage, config = read_weights(directory, step=step, dtype=dtype, first_stage=first_stage)
        booster = cls(
            network,
            stage,
            config.source,
            config.factor,
            path=config.path,
            objective=config.objective,
            steps=config.steps,
            statistics=config.statistics,
            consistency=config.consistency,
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
        spec, trained = self.first_stage.spec, () if self.objective == FlowMatching() else (self.objective,)
        settings = changed_fields(self.network_config), changed_fields(self.coupling), self.factor
        inversion = (spec.inversion_steps,) if spec.inversion_steps else ()
        facts = *settings, *trained, spec.scaling_factor, spec.shift_factor, *self.first_stage.statistics, *inversion
        return fingerprint(facts, self.parameters, split(self.first_stage.model)[1])

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
            method: method of `fmboost_jax.flow.solvers`, such as midpoint or dopri5; default: euler.
            solver: method, steps, time grid and tolerances in one, in place of `steps` and `method`.
            stochastic: sample the SDE instead, with a booster whose flow starts from noise.
            guidance: scale of classifier-free guidance with a context of zeros, for networks trained with context
                dropout. Doubles the batch.
            seed: 0 to 2^64 − 1; image i draws its noise from seed + i, or from its own number of a sequence.
            noise_step: diffusion step of the noise augmentation, 0 to 999; default: the training's. More noise adds
                detail and reduces fidelity.
            upsampling: "psu" or "psu_bicubic" (through pixels), or "lsu" (the latent itself); default: the training's.
            batch_size: images at once; default: all. Halved automatically when memory runs out.
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
        result = map_on_mesh(self.mesh, boost_part, inputs, batch_size, f"latents of {size[0]}×{size[1]}")
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

        `first_stage.encode_raw` returns raw latents, which datasets store.

        Args:
            images: as for `upscale`; their sides are multiples of `first_stage.image_multiple`.
            batch_size: images at once; default: all.

        Raises:
            InputError: images of several sizes or of a size that does not fit; as for `upscale`.
        """
        pixels = to_float(check_images(images).stacked(self.first_stage.image_multiple))

        def encode_part(pixels: Array) -> Array:
            return check_finite(self.first_stage.encode(pixels), "the encoder", self.first_stage.model)

        example = f"an image of {pixels.shape[1]}×{pixels.shape[2]} pixels to encode"
        return map_on_mesh(self.mesh, encode_part, [pixels], batch_size, example)

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
        latents = latents_array(latents, self.first_stage.spec)
        check_finite(latents, "the latents to decode")
        size = "×".join(str(side * self.first_stage.downsampling) for side in latents.shape[1:3])
        example = f"an image of {size} pixels to decode"
        return map_on_mesh(self.mesh, self._decode_part, [latents], batch_size, example)

    def decode_boosted(
        self,
        boosted: Float[Array | np.ndarray, "b H W c"],
        small: Float[Array | np.ndarray, "b h w c"],
        consistency: float | None = None,
        *,
        batch_size: int | None = None,
    ) -> UInt8[np.ndarray, "b _ _ 3"]:
        """Decode boosted latents and correct the images towards what the small latents decode to.

        A small photograph is the truth; what a small latent decodes to is an estimate of the coarse image, as the boost
        is. With a share of a half the result's coarse image is the mean of both.

        Args:
            boosted: what `boost` or `cascade` returned.
            small: the latents that they were given.
            consistency: share of `fmboost_jax.images.colour.consistency` that is applied, 0 to 1; 0 is `decode` alone.
                Default: the booster's own.
            batch_size: images at once; default: all.

        Raises:
            InputError: as for `decode`.
        """
        images = self.decode(boosted, batch_size=batch_size)
        share = self.consistency if consistency is None else consistency
        return fix_colour(images, self.decode(small, batch_size=batch_size), "consistency", share) if share else images

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
        tile: int = 256,
        colour_fix: str | None = "consistency",
        progress: Callable[[int, int], None] | None = None,
        return_trajectory: bool = False,
    ) -> Any:
        """Enlarge images of any sizes by programs of at most 4 shapes.

        An image larger than a tile is cut into tiles that overlap by an eighth and are blended; they draw one field of
        noise. A smaller one is mirrored at its edges to a square of a tile's side, a half, a quarter or an eighth of
        it, and cropped afterwards. Networks trained on crops are closer to the original in tiles than on a whole
        photograph, since the statistics of their norms are those of training.

        Args:
            images: a PIL image, an array (h, w, 3) or (b, h, w, 3) of uint8 or uint16 in RGB order, or a list of the
                first two, of any sizes. PIL images become upright sRGB; their alpha channel is resized.
            factor: must equal the booster's. Default: None.
            steps, method, solver, stochastic, guidance, seed, noise_step, batch_size: as for `boost`.
            tile: side of a tile in pixels of the small image; 0 for the whole image, whose edges are repeated to a size
                that the network takes. Images whose height is shared by devices (`spatial`), and trajectories, are
                whole. Default: 256.
            colour_fix: key of `fmboost_jax.images.colour.FIXES`, or None; of a trajectory, for its last point. Default:
                "consistency": a result, shrunk, equals its image.
            progress: called with the number of finished tiles and of all tiles of a large image.
            return_trajectory: return a list with the images at all points of the time grid.

        Returns:
            The same kind as `images`, `factor` times as high and wide; or a list of such.

        Raises:
            InputError: an array that is not uint8 or uint16 RGB, with a hint; an unknown colour fix; another factor;
                as for `boost`.
        """
        if factor is not None and factor != self.factor:
            raise InputError(f"this booster was trained to enlarge ×{self.factor}; found factor {factor}")
        integrate = self._integrator(noise_step, None, steps, method, solver, stochastic, guidance, encoded=True)
        if tile < 0:
            raise InputError(f"tile must be 0 (the whole image) or more, found {tile}")
        check_name("colour fix", colour_fix, (*FIXES, None))
        data, spatial = self.mesh.shape["data"], self.mesh.shape["spatial"]
        checked, multiple = check_images(images), self._image_multiple()
        results = enlarge_images(
            functools.partial(
                self._enlarge, batch_size=batch_size, integrate=integrate, return_trajectory=return_trajectory
            ),
            checked.arrays,
            check_seeds(seed, len(checked.arrays)),
            factor=self.factor,
            multiple=(multiple * spatial, multiple),
            tile=0 if return_trajectory or spatial > 1 else tile,
            tiles_at_once=max(batch_size or 1, data),
            progress=progress,
        )
        *points, results = zip(*results, strict=True) if return_trajectory else (results,)
        if colour_fix is not None:
            pairs = zip(results, checked.arrays, strict=True)
            results = [fix_colour(large[None], small[None], colour_fix)[0] for large, small in pairs]
        *points, large = (checked.restore(list(images)) for images in (*points, results))
        return [*points, large] if return_trajectory else large

    __call__ = upscale

    def _enlarge(
        self,
        images: UInt[np.ndarray, "b h w 3"],
        seeds: list[int],
        corners: Int[np.ndarray, "b 2"] | None,
        *,
        batch_size: int | None,
        integrate: Callable,
        return_trajectory: bool,
    ) -> UInt[np.ndarray, "b *n H W 3"]:
        """Enlarge images of a size that the network takes; `corners` are those of tiles in their photograph."""
        size = images.shape[1] * self.factor, images.shape[2] * self.factor
        stage = self.first_stage.downsampling

        def enlarge_part(pixels: Array, keys: Array, offsets: Array | None = None) -> np.ndarray:
            grown = upsample(pixels, size, self.coupling.pixel_filter) if self.coupling.pixel_filter else pixels
            grown = jax.device_put(grown, array_sharding(self.mesh, grown.shape))
            low = check_finite(self.first_stage.encode(grown), "the encoder", self.first_stage.model)
            boosted = integrate(low, keys, (size[0] // stage, size[1] // stage), return_trajectory, offsets)
            if not return_trajectory:
                return self._decode_part(boosted, images.dtype)
            return np.stack([self._decode_part(x, images.dtype) for x in jnp.moveaxis(boosted, 1, 0)], axis=1)

        inputs = [to_float(images), noise_keys(seeds)]
        if corners is not None:
            inputs.append((corners * self.factor // stage).astype(np.int32))
        return map_on_mesh(self.mesh, enlarge_part, inputs, batch_size, f"an image of {size[0]}×{size[1]} pixels")

    @property
    def size_multiple(self) -> int:
        """Required multiple of the sides of low-res latents."""
        multiple = self.network_config.size_multiple
        return multiple // math.gcd(multiple, self.factor)

    def check_size(self, height: int, width: int) -> None:
        """Refuse low-res latents whose enlarged size the network cannot halve.

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
        """The training's coupling with the given fields replaced.

        Raises:
            InputError: a noise step outside 0 to 999, or an unknown upsampling.
        """
        given = {"noise_step": noise_step, "upsampling": upsampling}.items()
        return dataclasses.replace(self.coupling, **{name: value for name, value in given if value is not None})

    def solver_with(self, solver: Solver | None = None, steps: int | None = None, method: str | None = None) -> Solver:
        """The solver of `boost`'s arguments.

        Raises:
            InputError: a solver together with steps or a method, or values that a solver or the network refuses.
        """
        if solver is not None and (steps is not None or method is not None):
            raise InputError("give either solver=Solver(method, steps, …), or steps and method")
        solver = solver or Solver(method or "euler", self.steps if steps is None else steps)
        check_solver(self.objective, solver)
        return solver

    def _integrator(
        self, noise_step, upsampling, steps, method, solver, stochastic, guidance, *, encoded: bool = False
    ) -> Callable[..., Array]:
        """A function (low-res latents, keys, size) → high-res latents; `encoded`: PSU was done before encoding."""
        coupling, ode = self.coupling_with(noise_step, upsampling), self.solver_with(solver, steps, method)
        if guidance is not None and not self.network_config.context_channels:
            raise InputError("guidance needs a network with context; this one has none")
        if stochastic is not None:
            check_solver(self.objective, stochastic)
            if coupling.start != "noise":
                raise InputError("stochastic sampling needs a booster whose flow starts from noise, not from latents")
            if solver is not None or steps is not None or method is not None:
                raise InputError("give either stochastic=StochasticSolver(method, steps, …), or an ODE's solver")

        def integrate(
            low: Array,
            keys: Array,
            size: tuple[int, int],
            return_trajectory: bool = False,
            offsets: Array | None = None,
        ) -> Array:
            if coupling.pixel_filter and not encoded:
                stage = self.first_stage
                grown = pixel_space_upsample(low, size, stage.encode, stage.decode, coupling.pixel_filter)
                low = check_finite(grown, "the autoencoder", self.first_stage.model)
            result = jitted_flow(
                self.graph,
                self._rounded,
                low,
                keys,
                offsets,
                size=size,
                coupling=coupling,
                solver=stochastic or ode,
                objective=self.objective,
                guidance=guidance,
                return_trajectory=return_trajectory,
            )
            return check_finite(result, "the flow", self.parameters)

        return integrate

    def _decode_part(self, latents: Array, dtype: np.dtype | type = np.uint8) -> UInt[np.ndarray, "b H W 3"]:
        images = check_finite(self.first_stage.decode(latents), "the decoder", self.first_stage.model)
        return to_integers(np.asarray(images), dtype)

    def _image_multiple(self) -> int:
        """Required multiple of the sides of a small image, for the autoencoder and the network."""
        whole, stage = self.first_stage.image_multiple, self.first_stage.downsampling
        if self.coupling.upsampling == "lsu":
            return math.lcm(whole, stage * self.size_multiple)
        enlarged = math.lcm(whole, stage * self.network_config.size_multiple)
        return enlarged // math.gcd(enlarged, self.factor)

    def _check_latents(self, latents: object) -> Array:
        array = latents_array(latents, self.first_stage.spec)
        self.check_size(*array.shape[1:3])
        check_finite(array, "the latents to boost")
        warn_of_scale(array, self.first_stage.spec, self.statistics)
        return array
