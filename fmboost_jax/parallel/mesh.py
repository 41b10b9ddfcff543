"""The mesh of devices: axes `data`, `fsdp` and `spatial`, in this order; any of them may be 1."""

import math

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from fmboost_jax.errors import InputError

AXES = ("data", "fsdp", "spatial")


def make_mesh(sizes: dict[str, int], devices: list[jax.Device] | None = None) -> Mesh:
    """A mesh over all devices.

    Args:
        sizes: one size for each of `data`, `fsdp`, `spatial`; at most one −1, which takes the devices that are left.
        devices: those to use; all of every process unless told.

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
