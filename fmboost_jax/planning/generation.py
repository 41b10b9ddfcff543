"""Prompt to image on TPUs, predicted part by part: text encoders, base model, flow, decoder."""

import dataclasses
import importlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fmboost_jax.boosting.diffusers import load_pipeline
from fmboost_jax.errors import InputError
from fmboost_jax.flow.solvers import Solver
from fmboost_jax.generation.flux2 import Flux2Klein
from fmboost_jax.generation.pipelines import check_supported
from fmboost_jax.generation.stable_diffusion import StableDiffusion
from fmboost_jax.parallel.sharding import batch_sharding, example_sharding
from fmboost_jax.planning import costs
from fmboost_jax.planning.collectives import collectives
from fmboost_jax.planning.compile import Compiled, cache_folder, compile_for
from fmboost_jax.planning.hlo import parse
from fmboost_jax.planning.programs import lower
from fmboost_jax.planning.report import Memory
from fmboost_jax.planning.topologies import Slice
from fmboost_jax.tables import size, table
from fmboost_jax.training.config import TrainingConfig

# As the published model repositories have them; source: their config.json files on the hub.
_CLIP_LARGE: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "projection_dim": 768,
}
_CLIP_BIG: dict[str, Any] = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "projection_dim": 1280,
    "hidden_act": "gelu",
}
_UNET_15: dict[str, Any] = {"sample_size": 64, "cross_attention_dim": 768, "time_cond_proj_dim": 256}
_UNET_XL: dict[str, Any] = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "use_linear_projection": True,
    "cross_attention_dim": 2048,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
    "time_cond_proj_dim": 256,
}
_SCHEDULE: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
}


@dataclasses.dataclass(frozen=True)
class Part:
    """One program of the generator.

    Attributes:
        name: "text", "base", "flow" or "decode".
        memory: of one chip.
        seconds: predicted time of a batch; None where it does not fit.
        flops: of the compiled program's convolutions and matrix products on all chips.
        mfu: `flops` over the chips' peak in `seconds`.
        compile_seconds: compilation time.
    """

    name: str
    memory: Memory
    seconds: float | None
    flops: int
    mfu: float
    compile_seconds: float


def sd15_lcm(unet: dict[str, Any] | None = None, text: dict[str, Any] | None = None) -> Any:
    """LCM-SD1.5 without weights, on PyTorch's meta device; arguments replace fields of the configs."""
    diffusers, torch, transformers = _libraries()
    with torch.device("meta"):
        return diffusers.LatentConsistencyModelPipeline(
            vae=None,
            tokenizer=None,
            text_encoder=transformers.CLIPTextModel(transformers.CLIPTextConfig(**_CLIP_LARGE | (text or {}))),
            unet=diffusers.UNet2DConditionModel(**_UNET_15 | (unet or {})),
            scheduler=diffusers.LCMScheduler(**_SCHEDULE),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )


def sdxl_lcm() -> Any:
    """LCM-SDXL without weights, on PyTorch's meta device."""
    diffusers, torch, transformers = _libraries()
    with torch.device("meta"):
        return diffusers.StableDiffusionXLPipeline(
            vae=None,
            tokenizer=None,
            tokenizer_2=None,
            text_encoder=transformers.CLIPTextModel(transformers.CLIPTextConfig(**_CLIP_LARGE)),
            text_encoder_2=transformers.CLIPTextModelWithProjection(transformers.CLIPTextConfig(**_CLIP_BIG)),
            unet=diffusers.UNet2DConditionModel(**_UNET_XL),
            scheduler=diffusers.LCMScheduler(**_SCHEDULE),
            add_watermarker=False,
        )


def _libraries() -> tuple[Any, Any, Any]:
    """The optional packages, without their types, which call their own classes wrong."""
    try:
        return tuple(map(importlib.import_module, ("diffusers", "torch", "transformers")))
    except ImportError as error:
        raise InputError("base models need PyTorch and diffusers: pip install 'fmboost_jax[generate]'") from error


BASES: dict[str, Callable[[], Any]] = {"sd15-lcm": sd15_lcm, "sdxl-lcm": sdxl_lcm}


def plan_generation(
    base: Any, config: TrainingConfig, tpus: Slice, mesh: Mesh, solver: Solver, *, steps: int, dtype: str = "bfloat16"
) -> list[Part]:
    """Compile the four parts for `config.train.batch_size` images and sum XLA's estimates.

    Args:
        base: an entry of `BASES`, or a diffusers pipeline's folder or hub id; or a loaded pipeline.
        config: of the booster: its flow, first stage and sizes; the base model makes images of `data.low_res` pixels.
        tpus: the slice.
        mesh: mesh of its devices.
        solver: of the flow.
        steps: of the base model.
        dtype: of the base model and the decoder.

    Raises:
        InputError: a pipeline that JAX cannot run, or latents of another number of channels than the flow's.
    """
    pipe = (BASES[base]() if base in BASES else load_pipeline(base, on_gpu=False)) if isinstance(base, str) else base
    pipeline, weights = check_supported(pipe).from_pipeline(pipe, dtype)
    # As `Generator.load` does it, boosters' autoencoder computes in the base model's type.
    config = dataclasses.replace(config, first_stage=dataclasses.replace(config.first_stage, dtype=dtype))
    channels = config.architecture.state_channels
    if pipeline.channels != channels:
        raise InputError(f"the base model's latents have {pipeline.channels} channels, the flow's state {channels}")
    lowered = lower_base(pipeline, weights, config, mesh, steps)
    lowered |= {"flow": lower(config, "sample", mesh, solver), "decode": lower(config, "decode", mesh, solver)}
    folder = cache_folder(config.compilation_cache)
    return [_part(name, compile_for(one, tpus.name, mesh, folder), tpus) for name, one in lowered.items()]


def lower_base(
    pipeline: StableDiffusion | Flux2Klein, weights: dict[str, Any], config: TrainingConfig, mesh: Mesh, steps: int
) -> dict[str, jax.stages.Lowered]:
    """Lower the text encoders and the base model's loop; every chip has all weights."""
    everywhere, examples = NamedSharding(mesh, PartitionSpec()), example_sharding(mesh)
    batch, side = config.train.batch_size, config.data.low_res // pipeline.downsampling

    def shapes(tree: Any, sharding: NamedSharding) -> Any:
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree)

    weights = shapes(weights, everywhere)
    denoiser = {"denoiser": weights.pop("denoiser")}
    lengths = pipeline.token_lengths
    tokens = tuple(jax.ShapeDtypeStruct((batch, length), jnp.int32, sharding=examples) for length in lengths)
    text = jax.jit(lambda weights, tokens: pipeline.conditions(weights, tokens, (side, side), 0))
    conditions = shapes(jax.eval_shape(text, weights, tokens), examples)
    noise = jax.ShapeDtypeStruct((batch, side, side, pipeline.channels), jnp.float32, sharding=batch_sharding(mesh))
    key = jax.eval_shape(lambda: jax.random.key(0))
    keys = jax.ShapeDtypeStruct((batch,), key.dtype, sharding=examples)
    number = jax.ShapeDtypeStruct((), jnp.float32, sharding=everywhere)
    tables = pipeline.tables(steps, (side, side))
    # Without guidance: the distilled models that `BASES` names need one evaluation a step.
    loop = jax.jit(
        lambda weights, conditions, noise, keys, scale: pipeline.denoise(
            weights, tables, conditions, noise, keys, scale, jnp.float32(0), guided=False
        )
    )
    return {
        "text": text.lower(weights, tokens),
        "base": loop.lower(denoiser, conditions, noise, keys, number),
    }


def _part(name: str, compiled: Compiled, tpus: Slice) -> Part:
    memory = Memory.from_compiled(compiled, tpus.chip.memory)
    if not compiled.text:
        return Part(name, memory, None, 0, 0.0, compiled.seconds)
    program = parse(compiled.text)
    operations = costs.operations(program)
    exposed = sum(one.runs * one.exposed for one in collectives(program, operations, tpus))
    seconds = costs.total_cycles(operations) / tpus.chip.clock + exposed
    chips = len(tpus.devices)
    flops = costs.total_flops(operations) * chips
    return Part(name, memory, seconds, flops, flops / (seconds * chips * tpus.chip.peak), compiled.seconds)


def describe_parts(parts: list[Part], batch: int, heading: str) -> str:
    """Format the parts as text: time, memory and MFU of each, images a second of all."""
    rows = {}
    for part in parts:
        memory = f"{size(part.memory.total)} a chip, {part.memory.share:.0%} of HBM"
        time = "does not fit" if part.seconds is None else f"{part.seconds * 1e3:9.2f} ms, MFU {part.mfu:6.1%}"
        rows[part.name] = f"{time}, {size(part.flops, 'FLOP')}, {memory}, compiled in {part.compile_seconds:.0f} s"
    times = [part.seconds for part in parts if part.seconds is not None]
    if len(times) == len(parts):
        rows["all"] = f"{sum(times) * 1e3:9.2f} ms a batch of {batch}, {batch / sum(times):.1f} images/s"
    return f"{heading}\n{table(rows)}"
