"""The mesh of devices: axes `data`, `fsdp` and `spatial`, in this order; any of them may be 1."""

import dataclasses
import math

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from fmboost_jax.errors import InputError

AXES = ("data", "fsdp", "spatial")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Section `mesh` of a config: devices along each axis, −1 (at most once) for those that are left.

    Attributes:
        data: shares the batch.
        fsdp: shares the batch, parameters and the optimizer's moments.
        spatial: shares the height of feature maps.
    """

    data: int = -1
    fsdp: int = 1
    spatial: int = 1


def make_mesh(
    sizes: dict[str, int],
    devices: list[jax.Device] | None = None,  # pyright: ignore[reportInvalidTypeForm]: a variable in its stubs
) -> Mesh:
    """A mesh over all devices.

    Args:
        sizes: one size for each of `data`, `fsdp`, `spatial`; at most one −1, which takes the devices that are left.
        devices: those to use; default: all devices of all processes.

    Raises:
        InputError: sizes whose product is not the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    shape = [int(sizes[axis]) for axis in AXES]
    if shape.count(-1) == 1:
        shape[shape.index(-1)] = len(devices) // -math.prod(shape)
    if any(size < 1 for size in shape) or math.prod(shape) != len(devices):
        asked = ", ".join(f"{axis}={sizes[axis]}" for axis in AXES)
        raise InputError(
            f"mesh {asked} does not fit {len(devices)} devices: the product must be their number, one −1 allowed"
        )
    return Mesh(np.asarray(devices).reshape(shape), AXES, axis_types=(AxisType.Auto,) * len(AXES))
