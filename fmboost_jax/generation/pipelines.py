"""Text-to-image pipelines of diffusers as pure functions: the table of those that run in JAX."""

from collections.abc import Sequence
from typing import Any, Protocol

from jaxtyping import Array, Float

from fmboost_jax.errors import InputError
from fmboost_jax.generation.flux2 import Flux2Klein
from fmboost_jax.generation.sampling import Tables
from fmboost_jax.generation.stable_diffusion import StableDiffusion, StableDiffusionXL
from fmboost_jax.generation.stable_diffusion3 import StableDiffusion3
from fmboost_jax.generation.texts import Tokens
from fmboost_jax.generation.torch_models import Weights
from fmboost_jax.registry import choose


class TextToImage(Protocol):
    """What a `Generator` calls of an entry of `PIPELINES`.

    Attributes:
        default_steps, default_guidance: where a call gives none.
        default_size: height and width of the latents.
        downsampling: pixels per latent position and axis.
        latent_multiple: what the latents' sides must be multiples of.
        channels: of the latents.
        token_lengths: lengths of the arrays that `tokens` returns.
        tokenizers: of the host, one for each text encoder.
        text_template: text around a prompt, which stands at its %s.
        zeros_for_no_negative: a prompt without a negative one is guided away from zeros, not from the empty text.
    """

    @property
    def default_steps(self) -> int: ...
    @property
    def default_guidance(self) -> float: ...
    @property
    def default_size(self) -> tuple[int, int]: ...
    @property
    def downsampling(self) -> int: ...
    @property
    def latent_multiple(self) -> int: ...
    @property
    def channels(self) -> int: ...
    @property
    def token_lengths(self) -> tuple[int, ...]: ...
    @property
    def tokenizers(self) -> tuple[Any, ...]: ...
    @property
    def text_template(self) -> str: ...
    @property
    def zeros_for_no_negative(self) -> bool: ...

    def tables(self, steps: int, size: tuple[int, int]) -> Tables:
        """The sampler's tables for so many steps and latents of this size."""
        ...

    def tokens(self, texts: Sequence[str]) -> Tokens:
        """Token numbers of the texts; warns of texts that were cut."""
        ...

    def guides(self, guidance: float) -> bool:
        """Whether this scale needs the unconditional half of the batch."""
        ...

    def conditions(
        self, weights: dict[str, Weights], tokens: Tokens, size: tuple[int, int], drop: int
    ) -> dict[str, Any]:
        """The text encoders' part of `latents`."""
        ...

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
        """The denoiser's part of `latents`."""
        ...

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
        """Scaled latents of noise; pure, to be jitted. See `StableDiffusion.latents`."""
        ...


# By the class of the diffusers pipeline.
PIPELINES: dict[str, type[StableDiffusion] | type[Flux2Klein]] = {
    "Flux2KleinPipeline": Flux2Klein,
    "LatentConsistencyModelPipeline": StableDiffusion,
    "StableDiffusion3Pipeline": StableDiffusion3,
    "StableDiffusionPipeline": StableDiffusion,
    "StableDiffusionXLPipeline": StableDiffusionXL,
}


def check_supported(pipe: Any) -> type[StableDiffusion] | type[Flux2Klein]:
    """The entry of a pipeline.

    Raises:
        InputError: a pipeline that `PIPELINES` does not have, or one without a part that its entry needs.
    """
    kind = choose("pipeline", type(pipe).__name__, PIPELINES)
    for name in kind.parts:
        if getattr(pipe, name, None) is None:
            raise InputError(f"{type(pipe).__name__} without {name} is not supported by the JAX backend")
    return kind
