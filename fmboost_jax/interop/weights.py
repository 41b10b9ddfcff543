"""State dicts from safetensors and PyTorch files."""

import os
from collections.abc import Mapping

import numpy as np
import safetensors
from safetensors.numpy import load_file

from fmboost_jax.errors import InputError
from fmboost_jax.interop.torch_file import read_torch_file


def read_state_dict(path: str) -> dict[str, np.ndarray]:
    """Read the tensors of a safetensors file or of a PyTorch file (gzipped or not), by name.

    Of a checkpoint with a `state_dict`, its tensors. Values that are not tensors are skipped.

    Raises:
        InputError: a file that is missing, damaged, of another format, without tensors, or that would run code.
    """
    if not os.path.isfile(path):
        raise InputError(f"weights {path}: no such file")
    if path.endswith(".safetensors"):
        try:
            return load_file(path)
        except (safetensors.SafetensorError, OSError) as error:
            raise InputError(f"weights {path}: not a whole safetensors file ({error}); fetch it again") from error
    content = read_torch_file(path)
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    tensors = content if isinstance(content, dict) else {}
    tensors = {name: value for name, value in tensors.items() if isinstance(value, np.ndarray)}
    if not tensors:
        raise InputError(f"weights {path}: expected named tensors, found none")
    return tensors


def under(prefix: str, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Select the tensors whose names start with `prefix`, and remove it from their names."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
