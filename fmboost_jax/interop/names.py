"""Weight names as tables: for each parameter of this package, its name and its layout in another format.

Every parameter of a model is translated to the other format, and then read (loading) or written (export) under that
name. All other keys of a state dict are unexpected keys.
"""

import functools
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import jax.numpy as jnp
import numpy as np

from fmboost_jax.errors import InputError
from fmboost_jax.models import parameters
from fmboost_jax.models.parameters import Model


class Layout(NamedTuple):
    """Layouts of a layer's weight in this package and in another format.

    Attributes:
        leaf: this package's name of the other format's `weight`; a `bias` is a vector in both.
        inward: function from the other format's array to this package's.
        outward: function from this package's array to the other format's.
    """

    leaf: str
    inward: Callable[[np.ndarray], np.ndarray]
    outward: Callable[[np.ndarray], np.ndarray]


def _as_is(array: np.ndarray) -> np.ndarray:
    return array


CONV = Layout("kernel", lambda w: w.transpose(2, 3, 1, 0), lambda w: w.transpose(3, 2, 0, 1))
# Transposed convolutions have inputs first in PyTorch and last here, which is the same permutation.
TRANSPOSED_CONV = CONV
LINEAR = Layout("kernel", np.transpose, np.transpose)
# Linear layers that the other format has as 1D and 2D convolutions with kernel size 1.
POINTWISE_1D = Layout("kernel", lambda w: w[:, :, 0].T, lambda w: w.T[:, :, None])
POINTWISE_2D = Layout("kernel", lambda w: w[:, :, 0, 0].T, lambda w: w.T[:, :, None, None])
NORM = Layout("scale", _as_is, _as_is)
_BIAS = Layout("bias", _as_is, _as_is)


class Row(NamedTuple):
    """A line of a table. `{i}` and `{j}` in `ours` match numbers; `theirs` may use them and the table's numbers."""

    ours: str
    theirs: str
    layout: Layout


class Table(NamedTuple):
    """The names of one format.

    Attributes:
        name: name of the format.
        rows: see `Row`.
        numbers: maps the model's config and the matched i and j to the other numbers that `theirs` uses.
    """

    name: str
    rows: tuple[Row, ...]
    numbers: Callable[..., dict[str, int]] = lambda config, i=0, j=0: {}


def within(ours: str, theirs: str, rows: tuple[Row, ...]) -> tuple[Row, ...]:
    """Prefix a block's rows with the block's path in the model."""
    return tuple(Row(f"{ours}.{row.ours}", f"{theirs}.{row.theirs}", row.layout) for row in rows)


def spell(table: Table, config: Any, path: str) -> tuple[str, Layout]:
    """Return the other format's name and the layout of the parameter `path` (parts separated by dots).

    Raises:
        KeyError: the table has no such parameter.
    """
    module, _, leaf = path.rpartition(".")
    for row in table.rows:
        match = _pattern(row.ours).fullmatch(module)
        if match and leaf in (row.layout.leaf, "bias"):
            indices = {key: int(value) for key, value in match.groupdict().items()}
            theirs = row.theirs.format(**indices, **table.numbers(config, **indices))
            return (f"{theirs}.bias", _BIAS) if leaf == "bias" else (f"{theirs}.weight", row.layout)
    raise KeyError(f"{table.name} names have no row for the parameter {path}")


@functools.cache
def _pattern(ours: str) -> re.Pattern:
    return re.compile(re.sub(r"\\{(\w)\\}", r"(?P<\1>[0-9]+)", re.escape(ours)))


def build(model: type[Model], config: Any, table: Table, tensors: Mapping[str, Any]) -> Model:
    """Build a model with the weights of a state dict.

    Args:
        model: class of the model, called as `model(config, rngs=...)`.
        config: config of the model.
        table: names of the state dict.
        tensors: state dict of numpy arrays or PyTorch tensors of any float type, which are converted to float32.

    Raises:
        InputError: missing or unexpected keys, size mismatches, tensors that are not floats; one message names all.
    """
    graph, shapes = parameters.split(parameters.abstract(model, config))
    arrays = {name: as_array(tensor) for name, tensor in tensors.items()}
    loaded, known = {}, set()
    missing, mismatched, not_floats = [], [], []
    for path, ours in shapes.items():
        theirs, layout = spell(table, config, path)
        known.add(theirs)
        if theirs not in arrays:
            missing.append(theirs)
            continue
        array, shape = arrays[theirs], layout.outward(np.broadcast_to(np.float32(0), ours.shape)).shape
        if array.shape != shape:
            mismatched.append(f"{theirs} expected {shape} found {array.shape}")
        elif not jnp.issubdtype(array.dtype, jnp.floating):
            not_floats.append(f"{theirs} is {array.dtype}")
        else:
            loaded[path] = jnp.asarray(layout.inward(array.astype(np.float32)))
    unexpected = sorted(arrays.keys() - known)
    problems = [
        f"{kind} ({len(names)}): {', '.join(names)}"
        for kind, names in (
            ("missing keys", missing),
            ("unexpected keys", unexpected),
            ("size mismatch", mismatched),
            ("not floats", not_floats),
        )
        if names
    ]
    if problems:
        raise InputError(
            f"weights with {table.name} names do not fit this {model.__name__}; {'; '.join(problems)}; "
            "compare the config with the one that the weights were trained with"
        )
    return cast(Model, parameters.merge(graph, loaded))


def export(model: Any, table: Table) -> dict[str, np.ndarray]:
    """Return the model's parameters as a state dict of float32 arrays, the inverse of `build`, bit for bit."""
    result = {}
    for path, value in parameters.split(model)[1].items():
        theirs, layout = spell(table, model.config, path)
        result[theirs] = np.ascontiguousarray(layout.outward(np.asarray(value)))
    return result


def as_array(tensor: Any) -> np.ndarray:
    """Convert an array or a PyTorch tensor, also of bfloat16, to a numpy array."""
    if hasattr(tensor, "detach"):
        tensor = tensor.detach().cpu()
        return tensor.float().numpy() if tensor.is_floating_point() else tensor.numpy()
    return np.asarray(tensor)
