"""Checksums of the inputs of an evaluation."""

import hashlib
import json

import numpy as np

from fmboost_jax.models.parameters import Parameters


def of_facts(**facts) -> str:
    """Return the SHA-256 of values that JSON can represent."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def of_parameters(parameters: Parameters) -> str:
    """Return the SHA-256 of a network's weights, including names and shapes."""
    digest = hashlib.sha256()
    for name in sorted(parameters):
        array = np.ascontiguousarray(parameters[name])
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.view(np.uint8).data)
    return digest.hexdigest()
