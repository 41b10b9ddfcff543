"""Prompt to image as one StableHLO program with its weights and tokenizers beside it, for JAX without PyTorch."""

import importlib.util
import json
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from fmboost_jax.boosting.booster import Booster
from fmboost_jax.boosting.stablehlo import PLATFORMS, boosted
from fmboost_jax.errors import InputError
from fmboost_jax.files import atomic_folder
from fmboost_jax.generation.generator import Generator
from fmboost_jax.images.value_range import to_uint8
from fmboost_jax.models.parameters import merge, split

PROGRAM, WEIGHTS = "generate.bin", "weights.safetensors"


def write_generator(
    out: str | os.PathLike,
    generator: Generator,
    *,
    steps: int | None = None,
    guided: bool | None = None,
    negative_prompt: str | None = None,
    height: int | None = None,
    width: int | None = None,
    boost_steps: int | None = None,
    batch_size: int = 1,
) -> None:
    """Write a folder that makes images of prompts with JAX, tokenizers and safetensors alone.

    It holds `generate.bin`, `weights.safetensors`, the tokenizers and a page with the code that runs them. Everything
    but prompts, seeds and the scale of the guidance is fixed in the program.

    Args:
        out: new folder.
        generator: what to export.
        steps: of the base model; default: diffusers' for this pipeline.
        guided: whether the program evaluates classifier-free guidance; default: if the pipeline's default scale does.
        negative_prompt: what to guide away from; default: nothing.
        height, width: of the base model's image in pixels; default: what it was trained for.
        boost_steps: of every booster; default: each one's own.
        batch_size: images of one call.

    Raises:
        InputError: an output that exists, a size or a number of steps that does not fit, or flatbuffers is missing.
    """
    if importlib.util.find_spec("flatbuffers") is None:
        raise InputError("StableHLO programs need flatbuffers: pip install 'fmboost_jax[export]'")
    if batch_size < 1:
        raise InputError(f"batch_size must be 1 or more, found {batch_size}")
    from safetensors.flax import save_file

    pipeline = generator.pipeline
    if guided is None:
        guided = pipeline.guides(pipeline.default_guidance)
    weights = _weights(generator)
    program = prompt_to_image(
        generator,
        weights,
        steps=steps,
        guided=guided,
        negative_prompt=negative_prompt,
        size=generator.latent_size(height, width),
        boost_steps=boost_steps,
        batch_size=batch_size,
    )
    with atomic_folder(out) as folder:
        (folder / PROGRAM).write_bytes(program.serialize())
        flat = {f"{part}/{name}": array for part, arrays in weights.items() for name, array in arrays.items()}
        save_file(flat, str(folder / WEIGHTS))
        names = _write_tokenizers(folder, pipeline)
        (folder / "README.md").write_text(_page(generator, names, guided, batch_size), encoding="utf-8")


def prompt_to_image(
    generator: Generator,
    weights: dict[str, Any],
    *,
    steps: int | None,
    guided: bool,
    negative_prompt: str | None,
    size: tuple[int, int],
    boost_steps: int | None,
    batch_size: int,
) -> export.Exported:
    """The program (weights, tokens, seeds (b,), guidance ()) → uint8 images; arguments as for `write_generator`."""
    pipeline, boosters = generator.pipeline, generator.boosters
    tables = pipeline.tables(pipeline.default_steps if steps is None else steps, size)
    zeros = guided and negative_prompt is None and pipeline.zeros_for_no_negative
    negatives = pipeline.tokens([negative_prompt or ""] * batch_size) if guided else ()
    graph = split(boosters[0].first_stage.model)[0] if boosters else None

    def program(weights, tokens, seeds, guidance):
        keys = jax.vmap(jax.random.key)(seeds)
        shape = (*size, pipeline.channels)
        noise = jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, 0), shape))(keys)
        if guided:
            tokens = tuple(jnp.concatenate(pair) for pair in zip(negatives, tokens, strict=True))
        rescale = jnp.float32(0)
        latents = pipeline.latents(weights, tables, tokens, noise, keys, guidance, rescale, guided=guided, zeros=zeros)
        if graph is None:
            return to_uint8(generator.decoder(weights["decoder"], latents).astype(jnp.float32))
        model: Any = merge(graph, weights["autoencoder"])
        for number, booster in enumerate(boosters):
            solver = booster.solver_with(steps=boost_steps)
            latents = boosted(booster, weights[f"booster_{number}"], model, latents, keys, solver)
        return to_uint8(model.decode(boosters[0].first_stage.spec.unscale(latents)))

    shapes = jax.tree.map(lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype), weights)
    tokens = tuple(jax.ShapeDtypeStruct((batch_size, length), jnp.int32) for length in pipeline.token_lengths)
    seeds = jax.ShapeDtypeStruct((batch_size,), jnp.uint32)
    guidance = jax.ShapeDtypeStruct((), jnp.float32)
    return export.export(jax.jit(program), platforms=PLATFORMS)(shapes, tokens, seeds, guidance)


def _weights(generator: Generator) -> dict[str, Any]:
    boosters: list[Booster] = generator.boosters
    weights = dict(generator.weights)
    if boosters:
        weights["autoencoder"] = split(boosters[0].first_stage.model)[1]
        weights |= {f"booster_{number}": booster.parameters for number, booster in enumerate(boosters)}
    return {part: {name: jnp.asarray(np.asarray(a)) for name, a in arrays.items()} for part, arrays in weights.items()}


def _write_tokenizers(folder: pathlib.Path, pipeline: Any) -> list[str]:
    """Write each text encoder's tokenizer, which pads and cuts as the pipeline does; returns the files' names."""
    import tokenizers

    names = []
    for number, (tokenizer, length) in enumerate(zip(pipeline.tokenizers, pipeline.token_lengths, strict=False)):
        own = tokenizers.Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        own.enable_truncation(length)
        own.enable_padding(length=length, pad_id=tokenizer.pad_token_id, pad_token=tokenizer.pad_token)
        names.append(f"tokenizer_{number}.json")
        own.save(str(folder / names[-1]))
    return names


def _page(generator: Generator, names: list[str], guided: bool, batch_size: int) -> str:
    pipeline = generator.pipeline
    prompts = json.dumps([f"prompt {number + 1}" for number in range(batch_size)])
    scale = "of classifier-free guidance" if guided else "read by models with an input for it, such as LCMs, alone"
    fields = ["ids", "attention_mask"][: len(pipeline.token_lengths) // len(names)]
    return f"""# Prompt to image without PyTorch

One program for {", ".join(PLATFORMS)}, made with jax {jax.__version__}. It needs jax, flatbuffers, tokenizers and
safetensors, takes {batch_size} {"prompt" if batch_size == 1 else "prompts"} a call, and compiles once.

```python
import jax
import numpy as np
from jax import export
from safetensors.flax import load_file
from tokenizers import Tokenizer

generate = jax.jit(export.deserialize(bytearray(open("{PROGRAM}", "rb").read())).call)
weights = {{}}
for name, array in load_file("{WEIGHTS}").items():
    part, _, own = name.partition("/")
    weights.setdefault(part, {{}})[own] = array
prompts = {prompts}
texts = [{json.dumps(pipeline.text_template)}.replace("%s", prompt) for prompt in prompts]
tokens = []
for file in {json.dumps(names)}:
    encoded = Tokenizer.from_file(file).encode_batch(texts)
    tokens += [np.array([getattr(text, name) for text in encoded], np.int32) for name in {json.dumps(fields)}]
seeds = np.arange(len(prompts), dtype=np.uint32)
guidance = np.float32({pipeline.default_guidance})  # {scale}
images = generate(weights, tuple(tokens), seeds, guidance)  # uint8 (b, H, W, 3)
```
"""
