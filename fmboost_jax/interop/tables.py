"""Tables of weight names, one for each format, for `fmboost_jax.interop.names`."""

from fmboost_jax.interop.names import (
    CONV,
    LINEAR,
    NORM,
    POINTWISE_1D,
    POINTWISE_2D,
    TRANSPOSED_CONV,
    Layout,
    Row,
    Table,
    within,
)

# --- the velocity network, as the PyTorch reference names it ----------------------------------------------------------

_UNET_BLOCK = (
    Row("norm1", "in_layers.0", NORM),
    Row("conv1", "in_layers.2", CONV),
    Row("embed", "emb_layers.1", LINEAR),
    Row("norm2", "out_layers.0", NORM),
    Row("conv2", "out_layers.3", CONV),
    Row("skip", "skip_connection", CONV),
)
_UNET_ATTENTION = (
    Row("norm", "norm", NORM),
    Row("qkv", "qkv", POINTWISE_1D),
    Row("proj_out", "proj_out", POINTWISE_1D),
)


def _unet_numbers(config, i: int = 0, j: int = 0) -> dict[str, int]:
    """Return the reference's indices. It has one list of blocks for the way down and one for the way up.

    Down: conv_in, then the blocks and the downsampling of each level. Up: blocks only; the upsampling is the last child
    of its level's last block, after the attention, if any.
    """
    blocks = config.num_res_blocks
    depth = len(config.channel_mult) - 1 - i
    return {
        "down": 1 + i * (blocks + 1) + j,
        "down_end": (i + 1) * (blocks + 1),
        "up": i * (blocks + 1) + j,
        "up_end": i * (blocks + 1) + blocks,
        "up_child": 2 if config.attends[depth] else 1,
    }


REFERENCE_UNET = Table(
    "reference",
    (
        Row("time1", "time_embed.0", LINEAR),
        Row("time2", "time_embed.2", LINEAR),
        Row("pool", "pool.down_conv", CONV),
        Row("unpool", "un_pool.up_conv", TRANSPOSED_CONV),
        Row("conv_in", "input_blocks.0.0", CONV),
        *within("down.{i}.blocks.{j}", "input_blocks.{down}.0", _UNET_BLOCK),
        *within("down.{i}.attentions.{j}", "input_blocks.{down}.1", _UNET_ATTENTION),
        Row("down.{i}.resample.conv", "input_blocks.{down_end}.0.op", CONV),
        *within("middle.block1", "middle_block.0", _UNET_BLOCK),
        *within("middle.attention", "middle_block.1", _UNET_ATTENTION),
        *within("middle.block2", "middle_block.2", _UNET_BLOCK),
        *within("up.{i}.blocks.{j}", "output_blocks.{up}.0", _UNET_BLOCK),
        *within("up.{i}.attentions.{j}", "output_blocks.{up}.1", _UNET_ATTENTION),
        Row("up.{i}.resample.conv", "output_blocks.{up_end}.{up_child}.conv", CONV),
        Row("norm_out", "out.0", NORM),
        Row("conv_out", "out.2", CONV),
    ),
    _unet_numbers,
)

# --- the KL autoencoder -----------------------------------------------------------------------------------------------


def _kl_block(shortcut: str) -> tuple[Row, ...]:
    return (
        Row("norm1", "norm1", NORM),
        Row("conv1", "conv1", CONV),
        Row("norm2", "norm2", NORM),
        Row("conv2", "conv2", CONV),
        Row("shortcut", shortcut, POINTWISE_2D),
    )


def _kl_attention(names: tuple[str, str, str, str, str], layout: Layout) -> tuple[Row, ...]:
    norm, query, key, value, out = names
    return (
        Row("norm", norm, NORM),
        Row("query", query, layout),
        Row("key", key, layout),
        Row("value", value, layout),
        Row("out", out, layout),
    )


_QUANT = (Row("quant", "quant_conv", POINTWISE_2D), Row("post_quant", "post_quant_conv", POINTWISE_2D))


def _compvis_coder(side: str, attention: tuple[Row, ...]) -> tuple[Row, ...]:
    return (
        Row(f"{side}.conv_in", f"{side}.conv_in", CONV),
        *within(f"{side}.middle.block1", f"{side}.mid.block_1", _kl_block("nin_shortcut")),
        *within(f"{side}.middle.attention", f"{side}.mid.attn_1", attention),
        *within(f"{side}.middle.block2", f"{side}.mid.block_2", _kl_block("nin_shortcut")),
        Row(f"{side}.norm_out", f"{side}.norm_out", NORM),
        Row(f"{side}.conv_out", f"{side}.conv_out", CONV),
    )


_COMPVIS_ATTENTION = _kl_attention(("norm", "q", "k", "v", "proj_out"), POINTWISE_2D)

COMPVIS_KL = Table(
    "CompVis",
    (
        *_compvis_coder("encoder", _COMPVIS_ATTENTION),
        *within("encoder.levels.{i}.blocks.{j}", "encoder.down.{i}.block.{j}", _kl_block("nin_shortcut")),
        Row("encoder.levels.{i}.downsample", "encoder.down.{i}.downsample.conv", CONV),
        *_compvis_coder("decoder", _COMPVIS_ATTENTION),
        *within("decoder.levels.{i}.blocks.{j}", "decoder.up.{level}.block.{j}", _kl_block("nin_shortcut")),
        Row("decoder.levels.{i}.upsample", "decoder.up.{level}.upsample.conv", CONV),
        *_QUANT,
    ),
    # CompVis numbers the levels of the decoder from the finest; this package and diffusers number them in order of use.
    lambda config, i=0, j=0: {"level": len(config.channels) - 1 - i},
)


def _diffusers_coder(side: str, attention: tuple[Row, ...]) -> tuple[Row, ...]:
    return (
        Row(f"{side}.conv_in", f"{side}.conv_in", CONV),
        *within(f"{side}.middle.block1", f"{side}.mid_block.resnets.0", _kl_block("conv_shortcut")),
        *within(f"{side}.middle.attention", f"{side}.mid_block.attentions.0", attention),
        *within(f"{side}.middle.block2", f"{side}.mid_block.resnets.1", _kl_block("conv_shortcut")),
        Row(f"{side}.norm_out", f"{side}.conv_norm_out", NORM),
        Row(f"{side}.conv_out", f"{side}.conv_out", CONV),
    )


def _diffusers_kl(name: str, attention: tuple[Row, ...]) -> Table:
    block = _kl_block("conv_shortcut")
    return Table(
        name,
        (
            *_diffusers_coder("encoder", attention),
            *within("encoder.levels.{i}.blocks.{j}", "encoder.down_blocks.{i}.resnets.{j}", block),
            Row("encoder.levels.{i}.downsample", "encoder.down_blocks.{i}.downsamplers.0.conv", CONV),
            *_diffusers_coder("decoder", attention),
            *within("decoder.levels.{i}.blocks.{j}", "decoder.up_blocks.{i}.resnets.{j}", block),
            Row("decoder.levels.{i}.upsample", "decoder.up_blocks.{i}.upsamplers.0.conv", CONV),
            *_QUANT,
        ),
    )


DIFFUSERS_KL = _diffusers_kl("diffusers", _kl_attention(("group_norm", "to_q", "to_k", "to_v", "to_out.0"), LINEAR))
# Files written by early versions of diffusers: the same network, with other names of the attention's layers.
OLD_DIFFUSERS_KL = _diffusers_kl(
    "old diffusers", _kl_attention(("group_norm", "query", "key", "value", "proj_attn"), LINEAR)
)

# --- the TAESD family -------------------------------------------------------------------------------------------------

_TINY_BLOCK = (
    Row("conv1", "conv.0", CONV),
    Row("conv2", "conv.2", CONV),
    Row("conv3", "conv.4", CONV),
    Row("pool.conv1", "pool.0", CONV),
    Row("pool.norm", "pool.1", NORM),
    Row("pool.conv2", "pool.3", CONV),
)


def _tiny_numbers(decoder_start: int):
    """Return a function for the layer indices in encoder and decoder; ReLUs and upsamplings count as layers."""

    def numbers(config, i: int = 0, j: int = 0) -> dict[str, int]:
        encoder, decoder = config.encoder_blocks, config.decoder_blocks
        down = sum(encoder[:i]) + i
        up = decoder_start + 2 + sum(decoder[:i]) + 2 * i
        last = i == len(decoder) - 1
        return {
            "down_conv": down,
            "down_block": down + 1 + j,
            "encoder_end": sum(encoder) + len(encoder),
            "decoder_start": decoder_start,
            "up_block": up + j,
            "up_conv": up + sum(decoder[i : i + 1]) + (0 if last else 1),
        }

    return numbers


def _tiny(name: str, layers: str, decoder_start: int) -> Table:
    encoder, decoder = f"encoder{layers}", f"decoder{layers}"
    return Table(
        name,
        (
            Row("encoder.levels.{i}.conv", f"{encoder}.{{down_conv}}", CONV),
            *within("encoder.levels.{i}.blocks.{j}", f"{encoder}.{{down_block}}", _TINY_BLOCK),
            Row("encoder.conv_out", f"{encoder}.{{encoder_end}}", CONV),
            Row("decoder.conv_in", f"{decoder}.{{decoder_start}}", CONV),
            *within("decoder.levels.{i}.blocks.{j}", f"{decoder}.{{up_block}}", _TINY_BLOCK),
            Row("decoder.levels.{i}.conv", f"{decoder}.{{up_conv}}", CONV),
        ),
        _tiny_numbers(decoder_start),
    )


# In the original, the decoder's first layer bounds the latent and has no weights; diffusers does not count it.
TAESD = _tiny("TAESD", "", decoder_start=1)
DIFFUSERS_TINY = _tiny("diffusers", ".layers", decoder_start=0)
