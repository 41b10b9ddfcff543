"""The models' own count of their FLOPs: every kernel times the positions where it is applied, and attention's products.

One multiplication with its addition is two FLOPs; norms, activations and what padding saves are left out.
"""

import math
import re

from fmboost_jax.errors import InputError
from fmboost_jax.models.autoencoder_kl import AutoencoderKL
from fmboost_jax.models.autoencoder_tiny import AutoencoderTiny
from fmboost_jax.models.first_stage import FirstStage
from fmboost_jax.models.parameters import Parameters, split
from fmboost_jax.models.unet import UNetConfig, abstract_unet


def unet_flops(config: UNetConfig, height: int, width: int) -> int:
    """FLOPs of one forward pass of one example.

    Args:
        config: the network.
        height, width: of the state.
    """
    pool = max(config.pool_factor, 1)
    positions = height * width // pool**2
    last = len(config.channel_mult) - 1

    def of_level(name: str) -> int:
        """Positions of the level that a parameter belongs to."""
        side, number = name.split(".")[:2]
        depth = int(number) if side == "down" else last - int(number)
        if ".resample." in name:
            depth += 1 if side == "down" else -1
        return positions // 4**depth

    def places(name: str) -> int:
        if name.startswith("time") or ".embed." in name:
            return 1
        if name.startswith(("down.", "up.")):
            return of_level(name)
        return positions // 4**last if name.startswith("middle.") else positions

    parameters = split(abstract_unet(config))[1]
    inner = config.num_heads * config.dim_head
    attention = 0
    for name in parameters:
        if name.endswith(".qkv.kernel"):
            count = places(name)
            linear = config.use_linear_attn and not name.startswith("middle.")
            attention += 4 * count * inner * (config.dim_head if linear else count)
    return _kernels(parameters, places) + attention


def decoder_flops(stage: FirstStage, height: int, width: int) -> int:
    """FLOPs of decoding one latent.

    Args:
        stage: an autoencoder, with or without weights.
        height, width: of the latent.

    Raises:
        InputError: a first stage that has no network.
    """
    if not isinstance(stage.model, AutoencoderKL | AutoencoderTiny):
        raise InputError(f"first stage {stage.kind!r} has no network to decode with: nothing to plan")
    positions = height * width

    def places(name: str) -> int:
        """Positions of a decoder's parameter; its levels stand coarsest first, each but the last doubles the size."""
        if found := re.match(r"decoder\.levels\.(\d+)\.", name):
            level = int(found[1])
            enlarged = re.search(r"levels\.\d+\.(upsample|conv)\.", name) and 2 ** (level + 1) <= stage.downsampling
            return positions * 4 ** (level + 1 if enlarged else level)
        return positions * (stage.downsampling**2 if ".conv_out." in name else 1)

    parameters = {
        name: array for name, array in split(stage.model)[1].items() if name.startswith(("decoder.", "post_quant."))
    }
    query = parameters.get("decoder.middle.attention.query.kernel")
    attention = 4 * positions**2 * query.shape[1] if query is not None else 0
    return _kernels(parameters, places) + attention


def _kernels(parameters: Parameters, places) -> int:
    return sum(
        2 * math.prod(array.shape) * places(name) for name, array in parameters.items() if name.endswith("kernel")
    )
