"""The mesh of devices, with the axes `data`, `fsdp` and `spatial`."""

import dataclasses
import math

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from fmboost_jax.errors import InputError

AXES = ("data", "fsdp", "spatial")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Section `mesh` of a config: devices along each axis. One of them may be −1, for all remaining devices.

    Attributes:
        data: size of the axis that shards the batch.
        fsdp: size of the axis that shards the batch, the parameters and the optimizer's moments.
        spatial: size of the axis that shards the height of feature maps.
    """

    data: int = -1
    fsdp: int = 1
    spatial: int = 1


def make_mesh(
    sizes: dict[str, int],
    devices: list[jax.Device] | None = None,  # pyright: ignore[reportInvalidTypeForm]: a variable in its stubs
) -> Mesh:
    """Return a mesh.

    Args:
        sizes: devices along `data`, `fsdp` and `spatial`; one of them may be −1, for all remaining devices.
        devices: devices of the mesh. Default: all devices of all processes.

    Raises:
        InputError: sizes whose product is not the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    shape = [int(sizes[axis]) for axis in AXES]
    if shape.count(-1) == 1:
        known = math.prod(size for size in shape if size != -1)
        shape[shape.index(-1)] = len(devices) // known if known else 0
    if any(size < 1 for size in shape) or math.prod(shape) != len(devices):
        found = ", ".join(f"{axis}={sizes[axis]}" for axis in AXES)
        raise InputError(
            f"mesh {found} does not fit {len(devices)} devices: the product must be their number; one size may be −1"
        )
    return Mesh(np.asarray(devices).reshape(shape), AXES, axis_types=(AxisType.Auto,) * len(AXES))
