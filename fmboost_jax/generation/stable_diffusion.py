"""Stable Diffusion's pipelines as pure functions: token numbers and noise in, scaled latents out."""

import dataclasses
import inspect
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from fmboost_jax.errors import InputError
from fmboost_jax.generation.guidance import guidance_embedding, guide
from fmboost_jax.generation.samplers import Sampler, sampler_from_config
from fmboost_jax.generation.sampling import Tables, sample
from fmboost_jax.generation.texts import Tokens, warn_of_cut
from fmboost_jax.generation.torch_models import TorchFunction, Weights, extract

# Positions that CLIP's text encoders have.
CLIP_LENGTH = 77


@dataclasses.dataclass(frozen=True, eq=False)
class StableDiffusion:
    """Stable Diffusion 1 and 2 and its latent consistency models: one CLIP encoder, a UNet.

    Attributes:
        encoders: the text encoders, in the tokenizers' order.
        denoiser: the UNet.
        tokenizers: of the host.
        sampler: the pipeline's scheduler.
        default_steps, default_guidance: diffusers' defaults.
        default_size: height and width of the latents.
        downsampling: pixels per latent position and axis.
        channels: of the latents.
        guidance_width: width of the guidance embedding; None for a denoiser without one.
        dtype: "float32" or "bfloat16".
        zeros_for_no_negative: a prompt without a negative one is guided away from zeros, not from the empty text.
    """

    parts: ClassVar[tuple[str, ...]] = ("text_encoder",)
    latent_multiple: ClassVar[int] = 1
    text_template: ClassVar[str] = "%s"
    encoders: tuple[TorchFunction, ...]
    denoiser: TorchFunction
    tokenizers: tuple[Any, ...]
    sampler: Sampler
    default_steps: int
    default_guidance: float
    default_size: tuple[int, int]
    downsampling: int
    channels: int
    guidance_width: int | None
    dtype: str
    zeros_for_no_negative: bool = False

    @classmethod
    def from_pipeline(cls, pipe: Any, dtype: str) -> "tuple[StableDiffusion, dict[str, Weights]]":
        """Take a pipeline's networks apart; its modules hold no weights afterwards.

        Args:
            pipe: of diffusers, in float32 on the CPU.
            dtype: "float32" or "bfloat16", of the weights and of the computation.

        Returns:
            The functions, and the weights of "denoiser", "encoder" and, where there is one, "encoder_2".

        Raises:
            InputError: a scheduler that `SAMPLERS` does not have, or parts that these functions do not know.
        """
        sampler = sampler_from_config({**pipe.scheduler.config, "_class_name": type(pipe.scheduler).__name__})
        config = pipe.unet.config
        names = [name for name in ("text_encoder", "text_encoder_2") if getattr(pipe, name, None) is not None]
        for name in names:
            if getattr(getattr(pipe, name).config, "use_attention_mask", False):
                raise InputError(f"{name} with use_attention_mask is not supported by the JAX backend")
        if config.encoder_hid_dim_type is not None or config.class_embed_type is not None:
            raise InputError("a UNet with image or class embeddings is not supported by the JAX backend")
        tokenizers = tuple(getattr(pipe, name.replace("text_encoder", "tokenizer")) for name in names)
        parameters = inspect.signature(type(pipe).__call__).parameters
        size = config.sample_size
        denoiser, weights = extract(pipe.unet, dtype)
        encoders = {name.replace("text_", ""): extract(getattr(pipe, name), dtype) for name in names}
        pipeline = cls(
            encoders=tuple(function for function, _ in encoders.values()),
            denoiser=denoiser,
            tokenizers=tokenizers,
            sampler=sampler,
            default_steps=parameters["num_inference_steps"].default,
            default_guidance=parameters["guidance_scale"].default,
            default_size=(size, size) if isinstance(size, int) else tuple(size),
            downsampling=pipe.vae_scale_factor,
            channels=config.in_channels,
            guidance_width=config.time_cond_proj_dim,
            dtype=dtype,
            zeros_for_no_negative=bool(pipe.config.get("force_zeros_for_empty_prompt")),
        )
        return pipeline, {"denoiser": weights, **{name: weights for name, (_, weights) in encoders.items()}}

    @property
    def token_lengths(self) -> tuple[int, ...]:
        """Tokens of a text for each encoder."""
        return (CLIP_LENGTH,) * len(self.encoders)

    def tables(self, steps: int, size: tuple[int, int]) -> Tables:
        """The sampler's tables for so many steps; the latents' size does not matter here."""
        del size
        return self.sampler.tables(steps)

    def tokens(self, texts: Sequence[str]) -> Tokens:
        """Token numbers of each tokenizer, padded and cut to its length.

        Warns:
            UserWarning: a text that was cut; the warning shows what was cut off.
        """
        found = []
        for tokenizer, length in zip(self.tokenizers, self.token_lengths, strict=True):
            options = {"padding": "max_length", "max_length": length, "truncation": True, "return_tensors": "np"}
            found.append(np.asarray(tokenizer(list(texts), **options)["input_ids"], np.int32))
        # The encoder that reads the most of a text decides what is lost.
        longest = max(range(len(found)), key=self.token_lengths.__getitem__)
        warn_of_cut(self.tokenizers[longest], texts, self.token_lengths[longest])
        return tuple(found)

    def guides(self, guidance: float) -> bool:
        """Whether this scale needs the unconditional half of the batch."""
        return guidance > 1 and self.guidance_width is None

    def conditions(
        self, weights: dict[str, Weights], tokens: Tokens, size: tuple[int, int], drop: int
    ) -> dict[str, Any]:
        """Inputs of the denoiser besides state and time.

        Args:
            weights: of the encoders.
            tokens: the unconditional half of the batch first, if there is one.
            size: height and width of the latents.
            drop: number of examples, from the first, that get zeros in place of their text's embeddings.
        """
        del size, drop
        hidden = self.encoders[0](weights["encoder"], tokens[0], return_dict=False)[0]
        return {"encoder_hidden_states": hidden}

    def latents(
        self,
        weights: dict[str, Weights],
        tables: Tables,
        tokens: Tokens,
        noise: Float[Array, "b h w c"],
        keys: Array,
        guidance: Float[Array, ""],
        rescale: Float[Array, ""],
        *,
        guided: bool,
        zeros: bool,
    ) -> Float[Array, "b h w c"]:
        """Run the pipeline from noise to scaled latents; pure, to be jitted.

        Args:
            weights: as `from_pipeline` returns them.
            tables: of the sampler.
            tokens: the unconditional half first where `guided`.
            noise: standard normal.
            keys: one an image, for samplers that add noise.
            guidance, rescale: see `fmboost_jax.generation.guidance.guide`.
            guided: whether there is an unconditional half.
            zeros: give the unconditional half zeros in place of embeddings.
        """
        count, height, width, _ = noise.shape
        conditions = self.conditions(weights, tokens, (height, width), count if guided and zeros else 0)
        return self.denoise(weights, tables, conditions, noise, keys, guidance, rescale, guided=guided)

    def denoise(
        self,
        weights: dict[str, Weights],
        tables: Tables,
        conditions: dict[str, Any],
        noise: Float[Array, "b h w c"],
        keys: Array,
        guidance: Float[Array, ""],
        rescale: Float[Array, ""],
        *,
        guided: bool,
    ) -> Float[Array, "b h w c"]:
        """The denoiser's loop: what `latents` does after `conditions`."""
        count = len(noise)
        if self.guidance_width is not None:
            embedding = guidance_embedding(guidance, self.guidance_width).astype(self.dtype)
            conditions = {**conditions, "timestep_cond": jnp.broadcast_to(embedding, (count, self.guidance_width))}

        def network(state, time):
            state = state.astype(self.dtype)
            state = jnp.concatenate([state, state]) if guided else state
            output = self.predict(weights["denoiser"], state, time, conditions)
            return guide(output, guidance, rescale) if guided else output

        def step_noise(step):
            folded = jax.vmap(jax.random.fold_in, (0, None))(keys, step + 1)
            return to_channels_first(jax.vmap(lambda key: jax.random.normal(key, noise.shape[1:]))(folded))

        state = sample(tables, network, to_channels_first(noise), step_noise)
        return jnp.transpose(state, (0, 2, 3, 1))

    def predict(self, weights: Weights, state: Array, time: Array, conditions: dict[str, Any]) -> Array:
        """One call of the denoiser."""
        return self.denoiser(weights, state, time, return_dict=False, **conditions)[0]


@dataclasses.dataclass(frozen=True, eq=False)
class StableDiffusionXL(StableDiffusion):
    """SDXL, its latent consistency models, Turbo and Lightning: two CLIP encoders, sizes as inputs of the UNet."""

    parts: ClassVar[tuple[str, ...]] = ("text_encoder", "text_encoder_2")

    def conditions(
        self, weights: dict[str, Weights], tokens: Tokens, size: tuple[int, int], drop: int
    ) -> dict[str, Any]:
        """See the class above; both encoders' second last layers, the second one's pooled text, the image's size."""
        hidden, pooled = [], jnp.zeros(())
        names = ("encoder", "encoder_2")
        for name, encoder, numbers in zip(names, self.encoders, tokens, strict=True):
            result = encoder(weights[name], numbers, return_dict=False, output_hidden_states=True)
            hidden.append(result[-1][-2])
            pooled = result[0]
        keep = (jnp.arange(len(tokens[0])) >= drop).astype(self.dtype)
        pixels = [side * self.downsampling for side in size]
        times = jnp.broadcast_to(jnp.asarray((*pixels, 0, 0, *pixels), self.dtype), (len(tokens[0]), 6))
        return {
            "encoder_hidden_states": jnp.concatenate(hidden, -1) * keep[:, None, None],
            "added_cond_kwargs": {"text_embeds": pooled * keep[:, None], "time_ids": times},
        }


def to_channels_first(x: Float[Array, "b h w c"]) -> Float[Array, "b c h w"]:
    """NHWC → PyTorch's layout."""
    return jnp.transpose(x, (0, 3, 1, 2))
