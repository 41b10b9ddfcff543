"""Architectures of autoencoders, from other projects' configs or from the shapes of their tensors."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from fmboost_jax.errors import InputError
from fmboost_jax.models.autoencoder_kl import AutoencoderKLConfig
from fmboost_jax.models.autoencoder_tiny import AutoencoderTinyConfig


def kl_config(config: Mapping[str, Any], quant_convs: bool, dtype: str) -> AutoencoderKLConfig:
    """Return our config for diffusers' `config.json` or CompVis' `ddconfig`.

    Args:
        config: one of the two; CompVis' may also hold `scaling_factor` (or `scale_factor`) and `shift_factor`.
        quant_convs: whether the weights have the 1×1 convolutions around the latent, which `ddconfig` leaves open.
        dtype: see `AutoencoderKLConfig`.

    Raises:
        InputError: neither of the two, or settings of another architecture; one message names all.
    """
    if "block_out_channels" in config:
        return _diffusers_kl(config, dtype)
    if "ch_mult" in config:
        return _compvis_kl(config, quant_convs, dtype)
    raise InputError(
        "autoencoder config: expected diffusers' config.json (block_out_channels) or CompVis' ddconfig (ch_mult), "
        f"found {', '.join(sorted(config)) or 'nothing'}"
    )


def _diffusers_kl(config: Mapping[str, Any], dtype: str) -> AutoencoderKLConfig:
    # diffusers' defaults.
    settings: dict[str, Any] = {"latent_channels": 4, "layers_per_block": 1, "norm_num_groups": 32, **config}
    get = settings.get
    _only(
        "autoencoder config",
        _class_name=(get("_class_name", "AutoencoderKL"), ("AutoencoderKL",)),
        act_fn=(get("act_fn", "silu"), ("silu",)),
        down_block_types=(_only_kind(get("down_block_types")), (None, "DownEncoderBlock2D")),
        up_block_types=(_only_kind(get("up_block_types")), (None, "UpDecoderBlock2D")),
        out_channels=(get("out_channels", 3), (get("in_channels", 3),)),
        use_post_quant_conv=(get("use_post_quant_conv", True), (get("use_quant_conv", True),)),
    )
    return AutoencoderKLConfig(
        image_channels=get("in_channels", 3),
        latent_channels=settings["latent_channels"],
        channels=tuple(config["block_out_channels"]),
        blocks=settings["layers_per_block"],
        norm_groups=settings["norm_num_groups"],
        quant_convs=get("use_quant_conv", True),
        mid_attention=get("mid_block_add_attention", True),
        scaling_factor=get("scaling_factor", AutoencoderKLConfig.scaling_factor),
        shift_factor=get("shift_factor") or 0.0,
        dtype=dtype,
    )


def _compvis_kl(config: Mapping[str, Any], quant_convs: bool, dtype: str) -> AutoencoderKLConfig:
    absent = [name for name in ("ch", "num_res_blocks", "z_channels") if name not in config]
    if absent:
        raise InputError(f"autoencoder ddconfig: {', '.join(absent)} missing")
    sizes = [config.get("resolution", 0) // 2**level for level in range(len(config["ch_mult"]))]
    _only(
        "autoencoder ddconfig",
        double_z=(config.get("double_z", True), (True,)),
        attn_resolutions=([size for size in config.get("attn_resolutions", ()) if size in sizes], ([],)),
        attn_type=(config.get("attn_type", "vanilla"), ("vanilla", "vanilla-xformers", "none")),
        out_ch=(config.get("out_ch", 3), (config.get("in_channels", 3),)),
    )
    scale = config.get("scaling_factor", config.get("scale_factor"))
    unscaled = 1.0 if config["z_channels"] != 4 else AutoencoderKLConfig.scaling_factor
    return AutoencoderKLConfig(
        image_channels=config.get("in_channels", 3),
        latent_channels=config["z_channels"],
        channels=tuple(config["ch"] * multiple for multiple in config["ch_mult"]),
        blocks=config["num_res_blocks"],
        quant_convs=quant_convs,
        mid_attention=config.get("attn_type", "vanilla") != "none",
        scaling_factor=unscaled if scale is None else scale,
        shift_factor=config.get("shift_factor") or 0.0,
        dtype=dtype,
    )


def compvis_arguments(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Infer the `ddconfig` of a state dict of CompVis names from its shapes.

    Raises:
        InputError: the tensors are not those of a KL autoencoder under CompVis names.
    """
    try:
        channels = tensors["encoder.conv_in.weight"].shape[0]
        levels = _count(r"encoder\.down\.(\d+)\.block\.0\.conv1\.weight", tensors)
        widths = [tensors[f"encoder.down.{i}.block.0.conv1.weight"].shape[0] for i in range(levels)]
        return {
            "in_channels": tensors["encoder.conv_in.weight"].shape[1],
            "out_ch": tensors["decoder.conv_out.weight"].shape[0],
            "ch": channels,
            "ch_mult": [width // channels for width in widths],
            "num_res_blocks": _count(r"encoder\.down\.0\.block\.(\d+)\.conv1\.weight", tensors),
            "z_channels": tensors["decoder.conv_in.weight"].shape[1],
            "attn_type": "vanilla" if "encoder.mid.attn_1.q.weight" in tensors else "none",
        }
    except KeyError as error:
        raise InputError(
            f"autoencoder weights: expected CompVis names, no {error.args[0]} found; diffusers names need their folder"
        ) from error


def tiny_config(config: Mapping[str, Any], tensors: Mapping[str, Any], dtype: str) -> AutoencoderTinyConfig:
    """Return our config of the TAESD family: architecture from the tensors, latent scale from diffusers' `config.json`.

    Raises:
        InputError: tensors or settings of another architecture.
    """
    _only(
        "autoencoder config",
        _class_name=(config.get("_class_name", "AutoencoderTiny"), ("AutoencoderTiny",)),
        act_fn=(config.get("act_fn", "relu"), ("relu",)),
        upsample_fn=(config.get("upsample_fn", "nearest"), ("nearest",)),
        upsampling_scaling_factor=(config.get("upsampling_scaling_factor", 2), (2,)),
    )
    encoder, decoder = _layers("encoder", tensors), _layers("decoder", tensors)
    if len(encoder) < 2 or len(decoder) < 2:
        raise InputError("autoencoder weights: expected TAESD's layers of an encoder and a decoder, found too few")
    first, last = encoder[0][1], encoder[-1][1]
    patch_size = config.get("patch_size", 1)  # a field of this package, not of diffusers
    return AutoencoderTinyConfig(
        image_channels=first.shape[1] // patch_size**2,
        patch_size=patch_size,
        latent_channels=last.shape[0],
        width=first.shape[0],
        encoder_blocks=_blocks_after_each(encoder[:-1]),
        decoder_blocks=_blocks_after_each(decoder[:0:-1])[::-1],
        pool=any(".pool." in name for name in tensors),
        scaling_factor=config.get("scaling_factor", 1.0),
        shift_factor=config.get("shift_factor") or 0.0,
        dtype=dtype,
    )


def _layers(side: str, tensors: Mapping[str, Any]) -> list[tuple[bool, Any]]:
    """Return (is a residual block, its first weight) for each of one side's layers, in order."""
    pattern = re.compile(rf"{side}\.(?:layers\.)?(\d+)\.(conv\.0\.)?weight")
    found = [(pattern.fullmatch(name), tensor) for name, tensor in tensors.items()]
    layers = {int(match[1]): (bool(match[2]), tensor) for match, tensor in found if match}
    return [layers[number] for number in sorted(layers)]


def _blocks_after_each(layers: list[tuple[bool, Any]]) -> tuple[int, ...]:
    """Count the residual blocks after each convolution."""
    counts: list[int] = []
    for is_block, _ in layers:
        if is_block and counts:
            counts[-1] += 1
        else:
            counts.append(0)
    return tuple(counts)


def _count(pattern: str, tensors: Mapping[str, Any]) -> int:
    return sum(bool(re.fullmatch(pattern, name)) for name in tensors)


def _only_kind(kinds: Iterable[str] | None) -> str | None:
    """Return the kind of block in a list, or all kinds where it has several."""
    return ", ".join(sorted(set(kinds))) if kinds else None


def _only(what: str, **settings: tuple[Any, tuple]) -> None:
    """Refuse settings whose value this architecture does not have."""
    wrong = [
        f"{name}={value!r} (expected {' or '.join(repr(known) for known in allowed)})"
        for name, (value, allowed) in settings.items()
        if value not in allowed
    ]
    if wrong:
        raise InputError(f"{what}: not this architecture: {', '.join(wrong)}")
