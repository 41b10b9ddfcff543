"""Checksums of what numbers depend on."""

import hashlib
import json

import numpy as np

from fmboost_jax.models.parameters import Parameters


def of_facts(**facts) -> str:
    """SHA-256 of facts that JSON can hold."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def of_parameters(parameters: Parameters) -> str:
    """SHA-256 of a network's weights, with their names and shapes."""
    digest = hashlib.sha256()
    for name in sorted(parameters):
        array = np.ascontiguousarray(parameters[name])
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.view(np.uint8).data)
    return digest.hexdigest()
