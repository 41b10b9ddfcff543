"""Architectures of autoencoders, from other projects' configs or from the shapes of their tensors."""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from fmboost_jax.configuration import from_mapping
from fmboost_jax.errors import InputError, printable, shown, some
from fmboost_jax.models.autoencoder_kl import AutoencoderKLConfig
from fmboost_jax.models.autoencoder_tiny import AutoencoderTinyConfig

T = TypeVar("T")


def kl_config(config: Mapping[str, Any], quant_convs: bool, dtype: str) -> AutoencoderKLConfig:
    """Return this package's config for diffusers' `config.json` or CompVis' `ddconfig`.

    Args:
        config: one of the two; CompVis' may also have `scaling_factor` (or `scale_factor`) and `shift_factor`.
        quant_convs: whether the weights have the 1×1 convolutions around the latent, which `ddconfig` does not specify.
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
        f"found {some(sorted(map(printable, config))) or 'nothing'}"
    )


@dataclasses.dataclass(frozen=True)
class _Diffusers:
    """The fields of diffusers' `config.json` that matter here, with diffusers' defaults."""

    block_out_channels: tuple[int, ...]
    latent_channels: int = 4
    layers_per_block: int = 1
    norm_num_groups: int = 32
    in_channels: int = 3
    out_channels: int = 3
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True
    scaling_factor: float = AutoencoderKLConfig.scaling_factor
    shift_factor: float | None = None
    _class_name: str = "AutoencoderKL"
    act_fn: str = "silu"
    down_block_types: tuple[str, ...] = ("DownEncoderBlock2D",)
    up_block_types: tuple[str, ...] = ("UpDecoderBlock2D",)
    latents_mean: tuple[float, ...] | None = None
    latents_std: tuple[float, ...] | None = None
    decoder_block_out_channels: tuple[int, ...] | None = None
    patch_size: tuple[int, int] = (2, 2)


def _diffusers_kl(config: Mapping[str, Any], dtype: str) -> AutoencoderKLConfig:
    fields = _known(_Diffusers, config, "autoencoder config")
    _only(
        "autoencoder config",
        _class_name=(fields._class_name, ("AutoencoderKL", "AutoencoderKLFlux2")),
        act_fn=(fields.act_fn, ("silu",)),
        down_block_types=(_only_kind(fields.down_block_types), ("DownEncoderBlock2D",)),
        up_block_types=(_only_kind(fields.up_block_types), ("UpDecoderBlock2D",)),
        out_channels=(fields.out_channels, (fields.in_channels,)),
        use_post_quant_conv=(fields.use_post_quant_conv, (fields.use_quant_conv,)),
        patch_size=(fields.patch_size, ((2, 2),)),
    )
    flux2 = fields._class_name == "AutoencoderKLFlux2"
    return AutoencoderKLConfig(
        image_channels=fields.in_channels,
        latent_channels=fields.latent_channels,
        channels=fields.block_out_channels,
        blocks=fields.layers_per_block,
        norm_groups=fields.norm_num_groups,
        quant_convs=fields.use_quant_conv,
        mid_attention=fields.mid_block_add_attention,
        scaling_factor=1.0 if flux2 else fields.scaling_factor,
        shift_factor=fields.shift_factor or 0.0,
        decoder_channels=fields.decoder_block_out_channels or (),
        latents_mean=fields.latents_mean or (),
        latents_std=fields.latents_std or (),
        dtype=dtype,
    )


def batch_norm_epsilon(config: Mapping[str, Any], default: float) -> float:
    """Return `batch_norm_eps` of a `config.json`, or the default.

    Raises:
        InputError: a value that is no number.
    """
    return _known(_BatchNorm, {"batch_norm_eps": default, **config}, "autoencoder config").batch_norm_eps


@dataclasses.dataclass(frozen=True)
class _BatchNorm:
    batch_norm_eps: float


@dataclasses.dataclass(frozen=True)
class _CompVis:
    """The fields of CompVis' `ddconfig` that matter here; those after `attn_type` are this package's additions."""

    ch: int
    num_res_blocks: int
    z_channels: int
    ch_mult: tuple[int, ...]
    in_channels: int = 3
    out_ch: int = 3
    resolution: int = 0
    double_z: bool = True
    attn_resolutions: tuple[int, ...] = ()
    attn_type: str = "vanilla"
    norm_num_groups: int = 32
    scaling_factor: float | None = None
    scale_factor: float | None = None
    shift_factor: float | None = None


def _compvis_kl(config: Mapping[str, Any], quant_convs: bool, dtype: str) -> AutoencoderKLConfig:
    absent = [name for name in ("ch", "num_res_blocks", "z_channels") if name not in config]
    if absent:
        raise InputError(f"autoencoder ddconfig: {', '.join(absent)} missing")
    fields = _known(_CompVis, config, "autoencoder ddconfig")
    sizes = {fields.resolution >> level for level in range(min(len(fields.ch_mult), fields.resolution.bit_length()))}
    _only(
        "autoencoder ddconfig",
        double_z=(fields.double_z, (True,)),
        attn_resolutions=([size for size in fields.attn_resolutions if size in sizes], ([],)),
        attn_type=(fields.attn_type, ("vanilla", "vanilla-xformers", "none")),
        out_ch=(fields.out_ch, (fields.in_channels,)),
    )
    scale = fields.scale_factor if fields.scaling_factor is None else fields.scaling_factor
    unscaled = 1.0 if fields.z_channels != 4 else AutoencoderKLConfig.scaling_factor
    return AutoencoderKLConfig(
        image_channels=fields.in_channels,
        latent_channels=fields.z_channels,
        channels=tuple(fields.ch * multiple for multiple in fields.ch_mult),
        blocks=fields.num_res_blocks,
        norm_groups=fields.norm_num_groups,
        quant_convs=quant_convs,
        mid_attention=fields.attn_type != "none",
        scaling_factor=unscaled if scale is None else scale,
        shift_factor=fields.shift_factor or 0.0,
        dtype=dtype,
    )


def _known(schema: type[T], config: Mapping[str, Any], where: str) -> T:
    """The fields of a config that a dataclass has, as the dataclass."""
    names = {field.name for field in dataclasses.fields(schema)}  # pyright: ignore[reportArgumentType]
    return from_mapping(schema, {name: value for name, value in config.items() if name in names}, where)


def inferred_arguments(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Infer CompVis' `ddconfig`, or diffusers' `config.json`, from the names and shapes of a state dict.

    Its latent channels are `z_channels` or `latent_channels`. The number of groups of the norms leaves no trace in a
    state dict; both projects have 32.

    Raises:
        InputError: the tensors are not those of a KL autoencoder under CompVis' or diffusers' names.
    """
    try:
        return (
            _diffusers_arguments(tensors) if "encoder.conv_norm_out.weight" in tensors else _compvis_arguments(tensors)
        )
    except (KeyError, IndexError, ZeroDivisionError) as error:
        raise InputError(
            "autoencoder weights: expected CompVis' or diffusers' names of a KL autoencoder, no "
            f"{error.args[0] if isinstance(error, KeyError) else 'convolutions'} found"
        ) from error


def _compvis_arguments(tensors: Mapping[str, Any]) -> dict[str, Any]:
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


def _diffusers_arguments(tensors: Mapping[str, Any]) -> dict[str, Any]:
    levels = _count(r"encoder\.down_blocks\.(\d+)\.resnets\.0\.conv1\.weight", tensors)
    names = [f"encoder.down_blocks.{i}.resnets.0.conv1.weight" for i in range(levels)]
    quant_convs = "quant_conv.weight" in tensors
    return {
        "in_channels": tensors["encoder.conv_in.weight"].shape[1],
        "out_channels": tensors["decoder.conv_out.weight"].shape[0],
        "block_out_channels": [tensors[name].shape[0] for name in names],
        "layers_per_block": _count(r"encoder\.down_blocks\.0\.resnets\.(\d+)\.conv1\.weight", tensors),
        "latent_channels": tensors["decoder.conv_in.weight"].shape[1],
        "use_quant_conv": quant_convs,
        "use_post_quant_conv": quant_convs,
        "mid_block_add_attention": "encoder.mid_block.attentions.0.group_norm.weight" in tensors,
    }


def tiny_config(config: Mapping[str, Any], tensors: Mapping[str, Any], dtype: str) -> AutoencoderTinyConfig:
    """Return this package's config of the TAESD family.

    The architecture comes from the tensors, the latent scale from diffusers' `config.json`.

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
    fields = _known(_Tiny, config, "autoencoder config")
    encoder, decoder = _layers("encoder", tensors), _layers("decoder", tensors)
    if len(encoder) < 2 or len(decoder) < 2:
        raise InputError("autoencoder weights: expected TAESD's layers of an encoder and a decoder, found too few")
    first, last = encoder[0][1], encoder[-1][1]
    if first.ndim != 4 or not 1 <= fields.patch_size**2 <= first.shape[1]:
        raise InputError(
            f"autoencoder weights: the first convolution has the shape {first.shape}, which has no patches of side "
            f"{fields.patch_size}"
        )
    return AutoencoderTinyConfig(
        image_channels=first.shape[1] // fields.patch_size**2,
        patch_size=fields.patch_size,
        latent_channels=last.shape[0],
        width=first.shape[0],
        encoder_blocks=_blocks_after_each(encoder[:-1]),
        decoder_blocks=_blocks_after_each(decoder[:0:-1])[::-1],
        pool=any(".pool." in name for name in tensors),
        scaling_factor=fields.scaling_factor,
        shift_factor=fields.shift_factor or 0.0,
        dtype=dtype,
    )


@dataclasses.dataclass(frozen=True)
class _Tiny:
    """The fields of diffusers' `config.json` of a tiny autoencoder that its tensors do not give."""

    scaling_factor: float = 1.0
    shift_factor: float | None = None
    patch_size: int = 1  # a field of this package, not of diffusers


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


def _only_kind(kinds: Iterable[str]) -> str:
    """Return the kind of block in a list, or all kinds where it has several."""
    return ", ".join(sorted(set(kinds)))


def _only(what: str, **settings: tuple[Any, tuple]) -> None:
    """Raise InputError for settings with values that this architecture does not support."""
    wrong = [
        f"{name}={shown(value)} (expected {' or '.join(repr(known) for known in allowed)})"
        for name, (value, allowed) in settings.items()
        if value not in allowed
    ]
    if wrong:
        raise InputError(f"{what}: not this architecture: {', '.join(wrong)}")
