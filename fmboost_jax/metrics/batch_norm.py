"""Folding of batch normalisation into the preceding convolution, for frozen networks."""

from collections.abc import Callable, Mapping

import numpy as np


def fold_batch_norms(
    tensors: Mapping[str, np.ndarray], norm_of: Callable[[str], str], epsilon: float
) -> dict[str, np.ndarray]:
    """Fold batch norms into convolutions: weight w·γ/√(σ² + ε) and bias β − μ·γ/√(σ² + ε).

    Args:
        tensors: state dict with PyTorch's names; its convolutions have no bias.
        norm_of: function from the name of a convolution to the name of its norm.
        epsilon: epsilon of the norms.

    Returns:
        `<convolution>.weight` and `<convolution>.bias` of each convolution whose norm is in the state dict.
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
