"""A fingerprint of a booster's settings and weights, independent of its folder's name."""

import dataclasses
import hashlib
from typing import Any

import numpy as np

from fmboost_jax.models.parameters import Parameters


def fingerprint(facts: tuple, *weights: Parameters) -> str:
    """Return 16 hexadecimal digits, equal for equal facts and weights.

    Args:
        facts: settings, by their `repr`.
        weights: parameters by name.
    """
    digest = hashlib.sha256(repr(facts).encode())
    for parameters in weights:
        for name in sorted(parameters):
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(np.asarray(parameters[name])).tobytes())
    return digest.hexdigest()[:16]


def changed_fields(config: Any) -> dict[str, Any]:
    """Return the fields that differ from their default, so that a new field changes no fingerprint."""
    fields = {field.name: field.default for field in dataclasses.fields(config)}
    return {name: getattr(config, name) for name, default in fields.items() if getattr(config, name) != default}
