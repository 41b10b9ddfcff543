"""Stable Diffusion 3 as pure functions: two CLIP encoders, T5 or none, a transformer of both streams."""

import dataclasses
import inspect
from typing import Any, ClassVar

import jax.numpy as jnp
from jaxtyping import Array

from fmboost_jax.errors import InputError
from fmboost_jax.generation.samplers import FlowMatchEuler, sampler_from_config
from fmboost_jax.generation.sampling import Tables
from fmboost_jax.generation.stable_diffusion import StableDiffusion
from fmboost_jax.generation.texts import Tokens
from fmboost_jax.generation.torch_models import Weights, extract


@dataclasses.dataclass(frozen=True, eq=False)
class StableDiffusion3(StableDiffusion):
    """Stable Diffusion 3 and 3.5 (arXiv 2403.03206).

    Attributes:
        text_width: width of a token's embedding in the transformer.
        long_text: tokens of T5's text; zeros stand in their place without T5.
        patch: side of the transformer's patches.
    """

    parts: ClassVar[tuple[str, ...]] = ("text_encoder", "text_encoder_2", "transformer")
    latent_multiple: ClassVar[int] = 2
    text_width: int = 4096
    long_text: int = 256
    patch: int = 2

    @classmethod
    def from_pipeline(cls, pipe: Any, dtype: str) -> "tuple[StableDiffusion3, dict[str, Weights]]":
        """Take a pipeline's networks apart; arguments and errors as for `StableDiffusion.from_pipeline`.

        Returns:
            The functions, and the weights of "denoiser", "encoder", "encoder_2" and, where there is T5, "encoder_3".
        """
        sampler = sampler_from_config({**pipe.scheduler.config, "_class_name": type(pipe.scheduler).__name__})
        if not isinstance(sampler, FlowMatchEuler):
            found = type(pipe.scheduler).__name__
            raise InputError(f"Stable Diffusion 3 needs FlowMatchEulerDiscreteScheduler, found {found}")
        names = ["text_encoder", "text_encoder_2", "text_encoder_3"]
        names = [name for name in names if getattr(pipe, name, None) is not None]
        config, defaults = pipe.transformer.config, inspect.signature(type(pipe).__call__).parameters
        tokenizers = tuple(getattr(pipe, name.replace("text_encoder", "tokenizer")) for name in names)
        denoiser, weights = extract(pipe.transformer, dtype)
        encoders = {name.replace("text_", ""): extract(getattr(pipe, name), dtype) for name in names}
        pipeline = cls(
            encoders=tuple(function for function, _ in encoders.values()),
            denoiser=denoiser,
            tokenizers=tokenizers,
            sampler=sampler,
            default_steps=defaults["num_inference_steps"].default,
            default_guidance=defaults["guidance_scale"].default,
            default_size=(config.sample_size, config.sample_size),
            downsampling=pipe.vae_scale_factor,
            channels=config.in_channels,
            guidance_width=None,
            dtype=dtype,
            text_width=config.joint_attention_dim,
            long_text=defaults["max_sequence_length"].default,
            patch=config.patch_size,
        )
        return pipeline, {"denoiser": weights, **{name: weights for name, (_, weights) in encoders.items()}}

    @property
    def token_lengths(self) -> tuple[int, ...]:
        """Tokens of a text for each encoder."""
        lengths = (self.tokenizers[0].model_max_length,) * 2
        return (*lengths, self.long_text)[: len(self.encoders)]

    def tables(self, steps: int, size: tuple[int, int]) -> Tables:
        """The sampler's tables; with dynamic shifting they depend on the number of patches."""
        sampler = self.sampler
        assert isinstance(sampler, FlowMatchEuler)
        if sampler.use_dynamic_shifting:
            mu = sampler.line_mu((size[0] // self.patch) * (size[1] // self.patch))
            sampler = dataclasses.replace(sampler, mu=mu)
        return sampler.tables(steps)

    def conditions(
        self, weights: dict[str, Weights], tokens: Tokens, size: tuple[int, int], drop: int
    ) -> dict[str, Any]:
        """Texts and their pooled embeddings; arguments as for `StableDiffusion.conditions`."""
        del size, drop
        hidden, pooled = [], []
        for name, encoder, numbers in zip(("encoder", "encoder_2"), self.encoders, tokens, strict=False):
            result = encoder(weights[name], numbers, return_dict=False, output_hidden_states=True)
            hidden.append(result[-1][-2])
            pooled.append(result[0])
        texts = jnp.concatenate(hidden, -1)
        texts = jnp.pad(texts, ((0, 0), (0, 0), (0, self.text_width - texts.shape[-1])))
        long = jnp.zeros((len(texts), self.long_text, self.text_width), texts.dtype)
        if len(self.encoders) == 3:
            long = self.encoders[2](weights["encoder_3"], tokens[2], return_dict=False)[0]
        return {
            "encoder_hidden_states": jnp.concatenate([texts, long], 1),
            "pooled_projections": jnp.concatenate(pooled, -1),
        }

    def predict(self, weights: Weights, state: Array, time: Array, conditions: dict[str, Any]) -> Array:
        """One call of the transformer; every example has its time."""
        times = jnp.broadcast_to(time, len(state))
        return self.denoiser(weights, state, timestep=times, return_dict=False, **conditions)[0]
