"""Boost and decode as StableHLO programs that run with jax alone, on CPU, CUDA and TPU, without this package.

Weights are arguments of a program, not constants in it: it is small, and the file format does not limit the size of
a network. Batch, height and width are symbols: one program serves every size. Such a program works on whole feature
maps, since it cannot depend on the value of a size. A program for one size has row chunks (`models/row_chunks.py`) and
so bounded memory, which matters above 1024².
"""

import importlib.util
import pathlib
from collections.abc import Sequence
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from jaxtyping import Array, Float, Key
from safetensors.numpy import save
from tqdm import tqdm

from fmboost_jax.boosting.booster import Booster
from fmboost_jax.boosting.program import flow_from_keys
from fmboost_jax.errors import InputError
from fmboost_jax.files import write_atomically
from fmboost_jax.flow.coupling import pixel_space_upsample
from fmboost_jax.flow.solvers import Solver
from fmboost_jax.images.value_range import to_uint8
from fmboost_jax.models.first_stage import Autoencoder, invert_decoder
from fmboost_jax.models.parameters import Parameters, merge, split

PLATFORMS = ("cpu", "cuda", "tpu")
AUTOENCODER = "autoencoder.safetensors"


def write_programs(
    folder: pathlib.Path, booster: Booster, sizes: Sequence[tuple[int, int]] = (), *, steps: int, method: str
) -> None:
    """Write a bundle's `stablehlo` folder: programs, the autoencoder's weights and a README on how to run them.

    Args:
        folder: created by this function.
        booster: the booster to export.
        sizes: (height, width) of low-res latents; each gets a program, beside the one for any size.
        steps, method: of the integration, fixed in the programs.

    Raises:
        InputError: flatbuffers, which jax.export writes with, is not installed; a size that the network cannot take.
    """
    if importlib.util.find_spec("flatbuffers") is None:
        raise InputError("StableHLO programs need flatbuffers: pip install 'fmboost_jax[export]'")
    folder.mkdir()
    autoencoder = split(booster.first_stage.model)[1]
    write_atomically(
        folder / AUTOENCODER, save({name: np.ascontiguousarray(array) for name, array in autoencoder.items()})
    )
    for size in tqdm([None, *sizes], "programs", unit="program"):
        content = boost_and_decode(booster, size, steps=steps, method=method).serialize()
        name = "boost" if size is None else f"boost_{size[0]}x{size[1]}"
        write_atomically(folder / f"{name}.bin", bytes(content))
    write_atomically(folder / "README.md", _page(booster, steps, method).encode())


def boost_and_decode(
    booster: Booster, size: tuple[int, int] | None = None, *, steps: int, method: str
) -> export.Exported:
    """The program (unet weights, autoencoder weights, latents (b, height, width, c), seeds (b,)) → uint8 images.

    Args:
        booster: the booster to export.
        size: the latents' height and width. Default: any that the network takes.
        steps, method: of the integration.
    """
    if size is not None:
        booster.check_size(*size)
    stage, solver = booster.first_stage, booster.solver_with(steps=steps, method=method)
    graph, autoencoder = split(stage.model)

    def program(unet, autoencoder, latents, seeds):
        model = cast(Autoencoder, merge(graph, autoencoder))
        keys = jax.vmap(jax.random.key)(seeds)
        return to_uint8(model.decode(stage.spec.unscale(boosted(booster, unet, model, latents, keys, solver))))

    height, width = size or (f"{booster.size_multiple}*{side}" for side in "hw")
    batch, height, width = export.symbolic_shape(f"b, {height}, {width}")
    latents = jax.ShapeDtypeStruct((batch, height, width, stage.channels), jnp.float32)
    seeds = jax.ShapeDtypeStruct((batch,), jnp.uint32)
    weights = ({name: jax.typeof(array) for name, array in tree.items()} for tree in (booster.parameters, autoencoder))
    return export.export(jax.jit(program), platforms=PLATFORMS)(*weights, latents, seeds)


def boosted(
    booster: Booster,
    unet: Parameters,
    autoencoder: Autoencoder,
    latents: Float[Array, "b h w c"],
    keys: Key[Array, "b"],
    solver: Solver,
) -> Float[Array, "b H W c"]:
    """One boost as part of a larger program; a pure function.

    Args:
        booster: whose network and settings; its weights are not used.
        unet: the network's weights.
        autoencoder: of pixel-space upsampling.
        latents: scaled.
        keys: one an image.
        solver: of the integration.
    """
    spec, coupling = booster.first_stage.spec, booster.coupling
    size = tuple(side * booster.factor for side in latents.shape[1:3])
    if coupling.pixel_filter:
        latents = pixel_space_upsample(
            latents,
            size,
            lambda image: spec.scale(invert_decoder(autoencoder, image, spec.inversion_steps)),
            lambda latent: autoencoder.decode(spec.unscale(latent)),
            coupling.pixel_filter,
        )
    return flow_from_keys(
        booster.graph, unet, latents, keys, size=size, coupling=coupling, solver=solver, objective=booster.objective
    )


def _page(booster: Booster, steps: int, method: str) -> str:
    return f"""# Boost and decode without fmboost_jax

Programs for {", ".join(PLATFORMS)}, made with jax {jax.__version__}: {steps} {method} steps, then the decoder. They
need jax, flatbuffers and safetensors. `boost.bin` takes any batch and any height and width that are multiples of
{booster.size_multiple}. A file with a size in its name takes that size alone, in less memory where it is large.

```python
import jax
import numpy as np
from jax import export
from safetensors.numpy import load_file

program = export.deserialize(bytearray(open("boost.bin", "rb").read()))
boost = jax.jit(program.call)  # compiles once a shape
files = [load_file(name) for name in ("../unet.safetensors", "{AUTOENCODER}")]
unet, autoencoder = ({{name: array.astype("float32") for name, array in file.items()}} for file in files)
latents = ...  # scaled, float32 (batch, height, width, {booster.first_stage.channels})
seeds = np.arange(len(latents), dtype=np.uint32)
images = boost(unet, autoencoder, latents, seeds)  # uint8, ×{booster.factor}
```
"""
