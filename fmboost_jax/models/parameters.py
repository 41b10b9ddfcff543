"""A module as a static graph and one flat dict of arrays: what is jitted, sharded, averaged and saved.

Keys are the attribute path, dots between: `down.0.blocks.1.conv1.kernel`. A flat dict keeps the dispatch of a jitted
step short and reads well in a checkpoint.
"""

import math
from collections.abc import Callable
from typing import Any, TypeVar

import jax
from flax import nnx

Parameters = dict[str, jax.Array | jax.ShapeDtypeStruct]
Model = TypeVar("Model", bound=nnx.Module)


def abstract(model: Callable[..., Model], config: Any) -> Model:
    """Return `model(config, rngs=…)` with shapes instead of arrays: for its graph and its parameters' names."""
    return nnx.eval_shape(lambda: model(config, rngs=nnx.Rngs(0)))


def split(model: Model) -> tuple[nnx.GraphDef[Model], Parameters]:
    """A module (or its abstract twin) → its static graph and its parameters."""
    graphdef, state = nnx.split(model)
    return graphdef, {".".join(map(str, path)): leaf.get_value() for path, leaf in state.flat_state()}


def merge(graphdef: nnx.GraphDef[Model], parameters: Parameters) -> Model:
    """The way back: a module that holds these arrays; cheap, meant for the inside of a jitted function."""
    paths = {tuple(int(part) if part.isdigit() else part for part in name.split(".")): name for name in parameters}
    return nnx.merge(graphdef, nnx.traversals.unflatten_mapping({path: parameters[paths[path]] for path in paths}))


def kernel_flops(module: nnx.Module | None, positions: int) -> int:
    """Return the FLOPs of a module's kernels, each applied at so many positions: two a weight; None has none."""
    if module is None:
        return 0
    kernels = (array for name, array in split(module)[1].items() if name.split(".")[-1] == "kernel")
    return sum(2 * math.prod(array.shape) * positions for array in kernels)


def count(parameters: Parameters) -> int:
    """Number of scalars in the parameters."""
    return sum(array.size for array in parameters.values())
