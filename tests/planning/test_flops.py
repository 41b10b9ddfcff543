"""The models' own count of their FLOPs against the paper's number and PyTorch's counter on the twins."""

import dataclasses

import pytest
import torch
from flax import nnx
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from fmboost_jax.errors import InputError
from fmboost_jax.interop.autoencoders import load_first_stage
from fmboost_jax.models.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig
from fmboost_jax.models.autoencoder_tiny import AutoencoderTiny, AutoencoderTinyConfig
from fmboost_jax.models.first_stage import FirstStage, LatentSpec
from fmboost_jax.models.unet import UNetConfig
from fmboost_jax.planning.flops import decoder_flops, unet_flops
from tests.torch_reference import autoencoder as twin_autoencoder
from tests.torch_reference import unet as twin_unet


def counted(call, *inputs) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        call(*inputs)
    return counter.get_total_flops()


def test_base_network():
    # 452.4 GFLOP without the products within attention, which many counters leave out.
    base = UNetConfig()
    attentions, positions = 3 + 1 + 4, 16 * 16
    products = attentions * 4 * positions**2 * base.num_heads * base.dim_head
    assert unet_flops(base, 128, 128) - products == pytest.approx(452.4e9, rel=1e-4)


@settings(max_examples=6, deadline=None, phases=(Phase.reuse, Phase.generate))
@given(
    options=st.fixed_dictionaries(
        {
            "channel_mult": st.sampled_from([(1,), (1, 2), (1, 2, 1)]),
            "attention_resolutions": st.sampled_from([(), (1,), (1, 2, 4)]),
            "num_res_blocks": st.integers(1, 2),
            "num_heads": st.integers(1, 2),
            "use_scale_shift_norm": st.booleans(),
            "use_linear_attn": st.booleans(),
            "conv_resample": st.booleans(),
            "pool_factor": st.integers(1, 2),
        }
    ),
    size=st.sampled_from([(16, 16), (32, 16)]),
)
def test_unet_against_pytorchs_counter(options, size):
    config = UNetConfig(model_channels=32, dim_head=8, **options)
    twin = twin_unet.UNet(config)
    inputs = torch.zeros(1, 4, *size), torch.zeros(1), torch.zeros(1, 4, *size)
    assert unet_flops(config, *size) == counted(twin, *inputs)


@pytest.mark.parametrize("attention", [True, False])
def test_kl_decoder_against_pytorchs_counter(attention):
    config = AutoencoderKLConfig(channels=(32, 64, 32), blocks=1, mid_attention=attention)
    stage = abstract(AutoencoderKL, config, "kl")
    twin = twin_autoencoder.AutoencoderKL(config)
    assert decoder_flops(stage, 8, 4) == counted(twin.decode, torch.zeros(1, 4, 8, 4))


def test_tiny_decoder_against_diffusers():
    diffusers = pytest.importorskip("diffusers")
    config = AutoencoderTinyConfig(width=8, encoder_blocks=(1, 2, 1), decoder_blocks=(1, 2, 1))
    theirs = diffusers.AutoencoderTiny(
        encoder_block_out_channels=(8,) * 3,
        decoder_block_out_channels=(8,) * 3,
        num_encoder_blocks=config.encoder_blocks,
        num_decoder_blocks=config.decoder_blocks,
    )
    found = decoder_flops(abstract(AutoencoderTiny, config, "tiny"), 4, 8)
    assert found == counted(theirs.decoder, torch.zeros(1, 4, 4, 8))


def test_pixels_need_no_decoder():
    with pytest.raises(InputError, match="nothing to plan"):
        decoder_flops(load_first_stage("identity"), 8, 8)


def abstract(network, config, kind: str) -> FirstStage:
    model = nnx.eval_shape(lambda: network(dataclasses.replace(config), rngs=nnx.Rngs(0)))
    return FirstStage(LatentSpec.from_config(kind, "", config), model)
