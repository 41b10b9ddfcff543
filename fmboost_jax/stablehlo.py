"""Boost and decode as StableHLO programs that run with jax alone, on CPU, CUDA and TPU, without this package.

Weights are arguments of a program, not constants in it: it stays small, and a large network meets no limit of the file
format. The batch is symbolic. Height and width are not: the resizing weights and the autoencoder's strips are made for
a size, so each size is a program of its own.
"""

import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from safetensors.numpy import save

from fmboost_jax.booster import Booster, flow_from_keys
from fmboost_jax.data.files import write_atomically
from fmboost_jax.errors import InputError
from fmboost_jax.flow.coupling import pixel_space_upsample
from fmboost_jax.models.parameters import merge, split

PLATFORMS = ("cpu", "cuda", "tpu")
AUTOENCODER = "autoencoder.safetensors"


def write_programs(
    folder: pathlib.Path, booster: Booster, sizes: list[tuple[int, int]], *, steps: int, method: str
) -> None:
    """Fill a bundle's `stablehlo` folder: a program a size, the autoencoder's weights and a page that says how to run.

    Args:
        folder: to be made.
        booster: what to export.
        sizes: (height, width) of low-res latents.
        steps, method: of the integration, fixed in the programs.

    Raises:
        InputError: flatbuffers, which jax.export writes with, is not installed; a size that the network cannot take.
    """
    if importlib.util.find_spec("flatbuffers") is None:
        raise InputError("--stablehlo needs flatbuffers: pip install 'fmboost_jax[export]'")
    folder.mkdir()
    autoencoder = split(booster.first_stage.model)[1]
    write_atomically(
        folder / AUTOENCODER, save({name: np.ascontiguousarray(array) for name, array in autoencoder.items()})
    )
    for height, width in sizes:
        content = boost_and_decode(booster, height, width, steps=steps, method=method).serialize()
        write_atomically(folder / f"boost_{height}x{width}.bin", bytes(content))
    write_atomically(folder / "README.md", _page(booster, sizes[0], steps, method).encode())


def boost_and_decode(booster: Booster, height: int, width: int, *, steps: int, method: str) -> export.Exported:
    """The program (unet weights, autoencoder weights, latents (b, height, width, c), seeds (b,)) → uint8 images."""
    booster.check_size(height, width)
    stage, source = booster.first_stage, booster.source
    graph, autoencoder = split(stage.model)
    size = height * booster.factor, width * booster.factor

    def program(unet, autoencoder, latents, seeds):
        model = merge(graph, autoencoder)

        def decode(latent):
            return model.decode(stage.unscale(latent))

        low = latents
        if source.upsampling == "psu":
            low = pixel_space_upsample(latents, size, lambda image: stage.scale(model.encode(image)[0]), decode)
        keys = jax.vmap(jax.random.key)(seeds)
        boosted = flow_from_keys(booster.graph, unet, low, keys, size=size, source=source, method=method, steps=steps)
        image = decode(boosted)
        return jnp.clip(jnp.round((image + 1) * 127.5), 0, 255).astype(jnp.uint8)

    (batch,) = export.symbolic_shape("b")
    latents = jax.ShapeDtypeStruct((batch, height, width, stage.channels), jnp.float32)
    seeds = jax.ShapeDtypeStruct((batch,), jnp.uint32)
    weights = ({name: jax.typeof(array) for name, array in tree.items()} for tree in (booster.parameters, autoencoder))
    return export.export(jax.jit(program), platforms=PLATFORMS)(*weights, latents, seeds)


def _page(booster: Booster, size: tuple[int, int], steps: int, method: str) -> str:
    height, width = size
    return f"""# Boost and decode without fmboost_jax

Programs for {", ".join(PLATFORMS)}, made with jax {jax.__version__}: {steps} {method} steps, then the decoder. They
need jax, flatbuffers and safetensors. Any batch size; the size of the low-res latents is in the file's name.

```python
import numpy as np
from jax import export
from safetensors.numpy import load_file

program = export.deserialize(bytearray(open("boost_{height}x{width}.bin", "rb").read()))
unet, autoencoder = load_file("../unet.safetensors"), load_file("{AUTOENCODER}")
latents = ...  # scaled, float32 (b, {height}, {width}, {booster.first_stage.channels})
seeds = np.arange(len(latents), dtype=np.uint32)
images = program.call(unet, autoencoder, latents, seeds)  # uint8, ×{booster.factor}
```
"""
