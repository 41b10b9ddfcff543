"""FLUX.2 [klein] as pure functions: one language model encodes the text, a transformer denoises patches of 2×2."""

import dataclasses
import inspect
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from fmboost_jax.errors import InputError
from fmboost_jax.generation.guidance import guide
from fmboost_jax.generation.samplers import FlowMatchEuler, sampler_from_config
from fmboost_jax.generation.sampling import Tables, sample
from fmboost_jax.generation.texts import Tokens, warn_of_cut
from fmboost_jax.generation.torch_models import TorchFunction, Weights, extract

# The model card's number of steps; the pipeline's own default is that of models that are not distilled.
DISTILLED_STEPS = 4


@dataclasses.dataclass(frozen=True, eq=False)
class Flux2Klein:
    """FLUX.2 [klein], distilled or not. Its latents stay normalised, as its transformer makes them.

    Attributes:
        encoder: the language model without its head.
        denoiser: the transformer.
        tokenizer: of the host; its chat template wraps the prompt.
        sampler: the pipeline's scheduler.
        text_layers: the language model's hidden states that are concatenated.
        text_length: tokens of a text.
        distilled: no guidance.
        default_steps: 4 where distilled, otherwise diffusers' default.
        default_guidance: diffusers' default.
        default_size: height and width of the latents.
        downsampling: pixels per latent position and axis.
        channels: of the latents.
        dtype: "float32" or "bfloat16".
    """

    parts: ClassVar[tuple[str, ...]] = ("text_encoder", "transformer")
    latent_multiple: ClassVar[int] = 2
    zeros_for_no_negative: ClassVar[bool] = False
    encoder: TorchFunction
    denoiser: TorchFunction
    tokenizer: Any
    sampler: FlowMatchEuler
    text_layers: tuple[int, ...]
    text_length: int
    distilled: bool
    default_steps: int
    default_guidance: float
    default_size: tuple[int, int]
    downsampling: int
    channels: int
    dtype: str

    @classmethod
    def from_pipeline(cls, pipe: Any, dtype: str) -> "tuple[Flux2Klein, dict[str, Weights]]":
        """Take a pipeline's networks apart; arguments and errors as for `StableDiffusion.from_pipeline`.

        Returns:
            The functions, and the weights of "denoiser" and "encoder".
        """
        sampler = sampler_from_config({**pipe.scheduler.config, "_class_name": type(pipe.scheduler).__name__})
        if not isinstance(sampler, FlowMatchEuler):
            raise InputError(f"FLUX.2 needs FlowMatchEulerDiscreteScheduler, found {type(pipe.scheduler).__name__}")
        defaults = {name: p.default for name, p in inspect.signature(type(pipe).__call__).parameters.items()}
        layers = tuple(defaults["text_encoder_out_layers"])
        depth = pipe.text_encoder.config.num_hidden_layers
        if max(layers) > depth:
            raise InputError(f"FLUX.2 reads layer {max(layers)} of its text encoder; this one has {depth}")
        distilled = bool(pipe.config.get("is_distilled"))
        denoiser, weights = extract(pipe.transformer, dtype)
        encoder, encoder_weights = extract(pipe.text_encoder.model, dtype)
        pipeline = cls(
            encoder=encoder,
            denoiser=denoiser,
            tokenizer=pipe.tokenizer,
            sampler=dataclasses.replace(sampler, linear_levels=True),
            text_layers=layers,
            text_length=defaults["max_sequence_length"],
            distilled=distilled,
            default_steps=DISTILLED_STEPS if distilled else defaults["num_inference_steps"],
            default_guidance=defaults["guidance_scale"],
            default_size=(pipe.default_sample_size, pipe.default_sample_size),
            downsampling=pipe.vae_scale_factor,
            channels=pipe.transformer.config.in_channels // 4,
            dtype=dtype,
        )
        return pipeline, {"denoiser": weights, "encoder": encoder_weights}

    def tables(self, steps: int, size: tuple[int, int]) -> Tables:
        """The sampler's tables for so many steps and latents of this size, which sets the shift of the levels."""
        return dataclasses.replace(self.sampler, mu=shift_strength(size[0] * size[1] // 4, steps)).tables(steps)

    @property
    def tokenizers(self) -> tuple[Any, ...]:
        """The one tokenizer."""
        return (self.tokenizer,)

    @property
    def token_lengths(self) -> tuple[int, ...]:
        """Of the token numbers, and of the mask of those that are no padding."""
        return (self.text_length, self.text_length)

    @property
    def text_template(self) -> str:
        """The chat template around a prompt, which stands at its %s."""
        return self._chat("%s")

    def _chat(self, text: str) -> str:
        options = {"tokenize": False, "add_generation_prompt": True, "enable_thinking": False}
        return self.tokenizer.apply_chat_template([{"role": "user", "content": text}], **options)

    def tokens(self, texts: Sequence[str]) -> Tokens:
        """Token numbers of the prompts in the chat template, and the mask of those that are no padding.

        Warns:
            UserWarning: a text that was cut; the warning shows what was cut off.
        """
        chats = [self._chat(text) for text in texts]
        cut = {"padding": "max_length", "max_length": self.text_length, "truncation": True, "return_tensors": "np"}
        found = self.tokenizer(chats, **cut)
        warn_of_cut(self.tokenizer, chats, self.text_length)
        return tuple(np.asarray(found[name], np.int32) for name in ("input_ids", "attention_mask"))

    def guides(self, guidance: float) -> bool:
        """Whether this scale needs the unconditional half of the batch."""
        return guidance > 1 and not self.distilled

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
        """Run the pipeline from noise to normalised latents; pure, see `StableDiffusion.latents`."""
        del zeros
        conditions = self.conditions(weights, tokens, (noise.shape[1], noise.shape[2]), 0)
        return self.denoise(weights, tables, conditions, noise, keys, guidance, rescale, guided=guided)

    def conditions(
        self, weights: dict[str, Weights], tokens: Tokens, size: tuple[int, int], drop: int
    ) -> dict[str, Any]:
        """Inputs of the transformer besides state and time; arguments as for `StableDiffusion.conditions`."""
        del drop
        height, width = size
        numbers, mask = tokens
        result = self.encoder(
            weights["encoder"],
            numbers,
            attention_mask=mask,
            output_hidden_states=True,
            use_cache=False,
            return_dict=False,
        )
        hidden = next(part for part in result if isinstance(part, tuple))
        texts = jnp.concatenate([hidden[layer] for layer in self.text_layers], -1)
        return {
            "encoder_hidden_states": texts,
            "txt_ids": _positions(len(numbers), (1, 1, 1, numbers.shape[1])),
            "img_ids": _positions(len(numbers), (1, height // 2, width // 2, 1)),
        }

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
        """The transformer's loop: what `latents` does after `conditions`."""
        count, height, width, channels = noise.shape

        def network(state, time):
            state = state.astype(self.dtype)
            state = jnp.concatenate([state, state]) if guided else state
            times = jnp.broadcast_to(time / 1000, len(state)).astype(self.dtype)
            inputs = {"hidden_states": state, "timestep": times, "guidance": None, "return_dict": False}
            output = self.denoiser(weights["denoiser"], **inputs, **conditions)[0]
            return guide(output, guidance, rescale) if guided else output

        def step_noise(step):
            folded = jax.vmap(jax.random.fold_in, (0, None))(keys, step + 1)
            return to_tokens(jax.vmap(lambda key: jax.random.normal(key, noise.shape[1:]))(folded))

        state = sample(tables, network, to_tokens(noise), step_noise)
        patches = state.reshape(count, height // 2, width // 2, channels, 2, 2)
        return patches.transpose(0, 1, 4, 2, 5, 3).reshape(noise.shape)


def to_tokens(x: Float[Array, "b h w c"]) -> Float[Array, "b n c4"]:
    """Patches of 2×2 as tokens, row by row; their channels are (c, row, column)."""
    batch, height, width, channels = x.shape
    patches = x.reshape(batch, height // 2, 2, width // 2, 2, channels)
    return patches.transpose(0, 1, 3, 5, 2, 4).reshape(batch, -1, 4 * channels)


def shift_strength(tokens: int, steps: int) -> float:
    """`mu` of FLUX.2's time shift: a line in the steps between two lines in the tokens, fitted by its makers.

    Source: github.com/black-forest-labs/flux2, `compute_empirical_mu`.
    """
    many = 0.00016927 * tokens + 0.45666666
    if tokens > 4300:
        return many
    few = 8.73809524e-05 * tokens + 1.89833333
    slope = (many - few) / 190
    return slope * steps + many - 200 * slope


def _positions(count: int, sides: tuple[int, int, int, int]) -> Array:
    """Coordinates (time, row, column, token) of all positions, for each of `count` examples."""
    grid = np.stack(np.meshgrid(*map(np.arange, sides), indexing="ij"), -1).reshape(1, -1, 4)
    return jnp.broadcast_to(jnp.asarray(grid, jnp.int32), (count, *grid.shape[1:]))
