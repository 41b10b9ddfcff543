"""A module as a static graph and one flat dict of arrays, which is jitted, sharded, averaged and saved.

Keys are attribute paths with dots, such as `down.0.blocks.1.conv1.kernel`. A flat dict makes the dispatch of a jitted
step fast and a checkpoint readable.
"""

import math
from collections.abc import Callable
from typing import Any, TypeVar, cast

import jax
from flax import nnx

Parameters = dict[str, jax.Array | jax.ShapeDtypeStruct]
Model = TypeVar("Model", bound=nnx.Module)


class _CountedStream(nnx.RngStream):
    """The keys of an `nnx.RngStream`, with the count in Python.

    Under `jax.jit`, flax would update its count of every key in a time that grows with the program traced so far.
    """

    def __init__(self, key, *, tag: str):
        super().__init__(key, tag=tag)
        self.drawn = 0

    def __call__(self) -> jax.Array:
        self.drawn += 1
        return jax.random.fold_in(self.key.get_value(), self.drawn - 1)


def fresh_keys(seed: int | jax.Array) -> nnx.Rngs:
    """Return the keys that `nnx.Rngs(seed)` draws, for a module that is constructed in a traced function."""
    keys = nnx.Rngs(seed)
    stream = _CountedStream(keys.default.key.get_value(), tag="default")
    keys.default = stream  # pyright: ignore[reportAttributeAccessIssue] (streams are attributes by name)
    return keys


def abstract(model: Callable[..., Model], config: Any) -> Model:
    """Return `model(config, rngs=…)` with shapes instead of arrays: for its graph and its parameters' names."""
    return nnx.eval_shape(lambda: model(config, rngs=fresh_keys(0)))


def split(model: Model) -> tuple[nnx.GraphDef[Model], Parameters]:
    """Split a module, also an abstract one, into its static graph and its parameters."""
    graphdef, state = nnx.split(model)
    return graphdef, {".".join(map(str, path)): leaf.get_value() for path, leaf in state.flat_state()}


def merge(graphdef: nnx.GraphDef[Model], parameters: Parameters) -> Model:
    """Build the module of a graph and parameters, the inverse of `split`; cheap inside a jitted function."""
    paths = {tuple(int(part) if part.isdigit() else part for part in name.split(".")): name for name in parameters}
    return nnx.merge(graphdef, nnx.traversals.unflatten_mapping({path: parameters[paths[path]] for path in paths}))


def rounded(graphdef: nnx.GraphDef[Model], parameters: Parameters) -> Parameters:
    """Round the parameters of layers that compute in bfloat16 to it, as the layers themselves do at each call.

    A program that runs often reads half the bytes, and casts nothing. All other parameters are the same arrays.
    """
    layers = nnx.Conv, nnx.ConvTranspose, nnx.Linear
    found = nnx.iter_modules(merge(graphdef, parameters))
    rough = {path for path, module in found if isinstance(module, layers) and module.dtype == "bfloat16"}
    paths = {".".join(map(str, path)) for path in rough}
    return {
        name: jax.lax.convert_element_type(cast(jax.Array, array), "bfloat16")
        if name.rpartition(".")[0] in paths
        else array
        for name, array in parameters.items()
    }


def kernel_flops(module: nnx.Module | None, positions: int) -> int:
    """Return the FLOPs of a module's kernels, applied at `positions` positions: two for each weight. None has 0."""
    if module is None:
        return 0
    kernels = (array for name, array in split(module)[1].items() if name.split(".")[-1] == "kernel")
    return sum(2 * math.prod(array.shape) * positions for array in kernels)


def count(parameters: Parameters) -> int:
    """Number of scalars in the parameters."""
    return sum(array.size for array in parameters.values())
