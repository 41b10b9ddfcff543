"""From prompts to images with a base model in JAX.

generator = Generator.load("SimianLuo/LCM_Dreamshaper_v7", boosters=["BUNDLE"])
images = generator(["a lighthouse at night"], steps=4, seed=1)   # uint8 (b, H, W, 3)
"""

import functools
import os
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from fmboost_jax.boosting.booster import Booster
from fmboost_jax.boosting.diffusers import base_name, check_pipeline, load_pipeline
from fmboost_jax.boosting.inputs import Seed, check_seeds, noise_keys
from fmboost_jax.errors import InputError
from fmboost_jax.generation.decoders import decoder_of
from fmboost_jax.generation.pipelines import check_supported
from fmboost_jax.images.value_range import to_uint8
from fmboost_jax.parallel.batching import map_batches
from fmboost_jax.parallel.mesh import make_mesh
from fmboost_jax.parallel.sharding import example_sharding, place, state_shardings


class Generator:
    """A text-to-image model, and the boosters that follow it or none.

    Args:
        pipe: a diffusers pipeline in float32 on the CPU; its modules hold no weights afterwards.
        boosters: stages that enlarge the base model's latents, in their order; without one the base model's own
            decoder makes the images.
        dtype: "float32" or "bfloat16", what the base model computes in.
        devices: those to work on; default: the first one. Batches are split over them.
        fsdp: number of devices that share one copy of the base model's weights.
        name: of the base model, for the settings in a result's file.

    Raises:
        InputError: a pipeline, scheduler or autoencoder that does not fit, or torchax is missing.
    """

    backend = "jax"

    def __init__(
        self,
        pipe: Any,
        boosters: Sequence[Booster] = (),
        *,
        dtype: str = "float32",
        devices: Sequence[jax.Device] | None = None,  # pyright: ignore[reportInvalidTypeForm]: a variable in its stubs
        fsdp: int = 1,
        name: str = "",
    ):
        if dtype not in ("float32", "bfloat16"):
            raise InputError(f'dtype must be "float32" or "bfloat16", found {dtype!r}')
        kind = check_supported(pipe)
        if boosters:
            check_pipeline(pipe, boosters[0])
        devices = jax.devices()[:1] if devices is None else list(devices)
        self.mesh = make_mesh({"data": -1, "fsdp": fsdp, "spatial": 1}, devices)
        self.boosters, self.name = list(boosters), name
        self.pipeline, weights = kind.from_pipeline(pipe, dtype)
        if not boosters:
            self.decoder, weights["decoder"] = decoder_of(pipe, dtype)
            self._decode = jax.jit(self.decoder)
        self.weights = place(weights, state_shardings(self.mesh, weights, "norm"))
        self._latents = jax.jit(self.pipeline.latents, static_argnames=("guided", "zeros"))

    @classmethod
    def load(
        cls,
        base: str | os.PathLike,
        boosters: Sequence[str | os.PathLike | Booster] = (),
        *,
        dtype: str = "float32",
        devices: Sequence[jax.Device] | None = None,  # pyright: ignore[reportInvalidTypeForm]: a variable in its stubs
        fsdp: int = 1,
        lora: Sequence[str | os.PathLike] = (),
        scheduler: str = "",
    ) -> "Generator":
        """Load a base model and its boosters.

        Args:
            base: folder or hub id of a diffusers pipeline.
            boosters: loaded ones, or what `Booster.load` takes; default: none, see the class.
            dtype, devices, fsdp: see the class.
            lora, scheduler: LoRA files to merge, and a scheduler in place of the pipeline's own; see `load_pipeline`.

        Raises:
            InputError: as for the class, `Booster.load` and `load_pipeline`.
        """
        pipe = load_pipeline(os.fspath(base), on_gpu=False, lora=lora, scheduler=scheduler)
        stages = [
            stage if isinstance(stage, Booster) else Booster.load(stage, dtype=dtype, devices=devices)
            for stage in boosters
        ]
        return cls(pipe, stages, dtype=dtype, devices=devices, fsdp=fsdp, name=base_name(base, lora, scheduler))

    def __call__(
        self,
        prompts: str | Sequence[str],
        *,
        boost_steps: int | None = None,
        seed: Seed = 0,
        batch_size: int | None = None,
        **options: Any,
    ) -> UInt8[np.ndarray, "b H W 3"]:
        """Make images of prompts. A second call of the same shapes compiles nothing.

        Boosted latents are decoded with the first booster's own consistency, see `Booster.decode_boosted`.

        Args:
            prompts: one, or several.
            boost_steps: steps of every booster; default: each one's own.
            seed: image i draws all its noise from seed + i, or from its own number of a sequence.
            batch_size: images at once; default: all.
            options: of `latents`.

        Raises:
            InputError: as for `latents` and `Booster.boost`.
        """
        low = self.latents(prompts, seed=seed, batch_size=batch_size, **options)
        if not self.boosters:
            if boost_steps is not None:
                raise InputError(f"boost_steps {boost_steps}: this generator has no booster")
            return self.decode(low, batch_size=batch_size)
        first, *others = self.boosters
        large = first.cascade(low, others, steps=boost_steps, seed=seed, batch_size=batch_size)
        return first.decode_boosted(large, low, batch_size=batch_size)

    def decode(
        self, latents: Float[Array | np.ndarray, "b h w c"], *, batch_size: int | None = None
    ) -> UInt8[np.ndarray, "b H W 3"]:
        """Decode scaled latents: by the boosters' autoencoder, or the base model's own where there are none.

        Args:
            latents: scaled.
            batch_size: images at once; default: all.

        Raises:
            InputError: one image does not fit into the memory; as for `Booster.decode`.
        """
        if self.boosters:
            return self.boosters[0].decode(latents, batch_size=batch_size)

        def run(part: Array) -> UInt8[np.ndarray, "b H W 3"]:
            part = jax.device_put(part, example_sharding(self.mesh))
            return to_uint8(np.asarray(self._decode(self.weights["decoder"], part), np.float32))

        example = f"latents of {latents.shape[1]}×{latents.shape[2]} to decode"
        return map_batches(run, [latents], batch_size or len(latents), multiple=self._multiple, example=example)

    @property
    def _multiple(self) -> int:
        return self.mesh.shape["data"] * self.mesh.shape["fsdp"]

    def latents(
        self,
        prompts: str | Sequence[str],
        *,
        steps: int | None = None,
        guidance: float | None = None,
        guidance_rescale: float = 0.0,
        negative_prompts: str | Sequence[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        seed: Seed = 0,
        noise: Float[Array | np.ndarray, "b h w c"] | None = None,
        batch_size: int | None = None,
    ) -> Float[Array, "b h w c"]:
        """Make the base model's scaled latents.

        Args:
            prompts: one, or several.
            steps: of the base model; default: diffusers' for this pipeline.
            guidance: scale of classifier-free guidance, or what an LCM reads as it; default: diffusers'.
            guidance_rescale: 0 to 1, see `fmboost_jax.generation.guidance.guide`.
            negative_prompts: what to guide away from: one for all, or one a prompt; default: nothing.
            height, width: of the base model's image in pixels; default: what it was trained for.
            seed: see `__call__`.
            noise: standard normal noise to start from; default: drawn from the seeds.
            batch_size: images at once; default: all.

        Warns:
            UserWarning: a prompt was cut to the tokenizer's length.

        Raises:
            InputError: no prompt, another number of negative prompts than of prompts, a size or a number of steps that
                does not fit.
        """
        pipeline = self.pipeline
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        if not prompts:
            raise InputError("no prompt: expected one or more")
        negatives = self._negatives(negative_prompts, len(prompts))
        scale = pipeline.default_guidance if guidance is None else float(guidance)
        guided = pipeline.guides(scale)
        size = self.latent_size(height, width)
        keys = noise_keys(check_seeds(seed, len(prompts)))
        if noise is None:
            shape = (*size, pipeline.channels)
            noise = jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, 0), shape))(keys)
        noise = jnp.asarray(noise, jnp.float32)
        if noise.shape != (len(prompts), *size, pipeline.channels):
            raise InputError(f"noise must be {(len(prompts), *size, pipeline.channels)}, found {noise.shape}")
        tables = pipeline.tables(pipeline.default_steps if steps is None else steps, size)
        texts = pipeline.tokens(prompts)
        without = pipeline.tokens(negatives or [""] * len(prompts)) if guided else ()
        run = functools.partial(
            self._run, tables, scale, guidance_rescale, guided, negatives is None and pipeline.zeros_for_no_negative
        )
        count = len(prompts) if batch_size is None else min(batch_size, len(prompts))
        example = f"base latents of {size[0]}×{size[1]}"
        return map_batches(run, [noise, keys, *texts, *without], count, multiple=self._multiple, example=example)

    def _run(
        self, tables, scale: float, rescale: float, guided: bool, zeros: bool, noise: Array, keys: Array, *numbers: Any
    ) -> Array:
        half = len(numbers) // 2 if guided else len(numbers)
        texts, without = numbers[:half], numbers[half:]
        tokens = tuple(np.concatenate(pair) for pair in zip(without, texts, strict=True)) if guided else texts
        examples = example_sharding(self.mesh)
        noise, keys = jax.device_put((noise, keys), examples)
        tokens = jax.device_put(tokens, examples)
        numbers_of_guidance = np.float32(scale), np.float32(rescale)
        return self._latents(
            self.weights, tables, tokens, noise, keys, *numbers_of_guidance, guided=guided, zeros=zeros
        )

    def _negatives(self, negatives: str | Sequence[str] | None, count: int) -> list[str] | None:
        if negatives is None:
            return None
        negatives = [negatives] * count if isinstance(negatives, str) else list(negatives)
        if len(negatives) != count:
            raise InputError(f"{count} prompts need as many negative prompts, found {len(negatives)}")
        return negatives

    def latent_size(self, height: int | None = None, width: int | None = None) -> tuple[int, int]:
        """Height and width of the base model's latents, of its image in pixels; default: what it was trained for.

        Raises:
            InputError: no multiple of what the base model or the first booster needs.
        """
        downsampling = self.pipeline.downsampling
        unit = downsampling * self.pipeline.latent_multiple
        defaults = self.pipeline.default_size
        for name, side in (("height", height), ("width", width)):
            if side is not None and (side < unit or side % unit):
                raise InputError(f"{name} {side}: this base model needs a multiple of {unit}")
        size = (
            defaults[0] if height is None else height // downsampling,
            defaults[1] if width is None else width // downsampling,
        )
        if self.boosters:
            self.boosters[0].check_size(*size)
        return size
