"""Batch normalisation of a frozen network, folded into the convolution in front of it."""

from collections.abc import Callable, Mapping

import numpy as np


def fold_batch_norms(
    tensors: Mapping[str, np.ndarray], norm_of: Callable[[str], str], epsilon: float
) -> dict[str, np.ndarray]:
    """Convolutions with a bias that do what they and their norms did: w·γ/√(σ² + ε), β − μ·γ/√(σ² + ε).

    Args:
        tensors: a state dict with PyTorch's names; convolutions without a bias.
        norm_of: a convolution's name → its norm's.
        epsilon: of the norms.

    Returns:
        `<convolution>.weight` and `.bias` for every convolution that has its norm among the tensors; nothing else.
    """
    folded = {}
    for name in tensors:
        convolution = name.removesuffix(".weight")
        norm = norm_of(convolution)
        if convolution == name or f"{norm}.running_var" not in tensors:
            continue
        scale, shift, mean, variance = (
            np.asarray(tensors[f"{norm}.{part}"], np.float64)
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        factor = scale / np.sqrt(variance + epsilon)
        folded[name] = (tensors[name] * factor[:, None, None, None]).astype(np.float32)
        folded[f"{convolution}.bias"] = (shift - mean * factor).astype(np.float32)
    return folded
