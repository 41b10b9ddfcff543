"""The models' own count of their FLOPs against the paper's number and PyTorch's counter on the twins."""

import dataclasses

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from fmboost_jax.interop.autoencoders import load_first_stage
from fmboost_jax.models.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig
from fmboost_jax.models.autoencoder_tiny import AutoencoderTiny, AutoencoderTinyConfig
from fmboost_jax.models.parameters import abstract
from fmboost_jax.models.unet import UNetConfig
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
    assert base.flops(128, 128) - products == pytest.approx(452.4e9, rel=1e-4)
    assert base.flops(128, 128) == pytest.approx(452.93e9, rel=2e-5)


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
def test_unet_agrees_with_pytorchs_counter(options, size):
    config = UNetConfig(model_channels=32, dim_head=8, **options)
    twin = twin_unet.UNet(config)
    inputs = torch.zeros(1, 4, *size), torch.zeros(1), torch.zeros(1, 4, *size)
    assert config.flops(*size) == counted(twin, *inputs)


@pytest.mark.parametrize("attention", [True, False])
def test_kl_decoder_agrees_with_pytorchs_counter(attention):
    config = AutoencoderKLConfig(channels=(32, 64, 32), blocks=1, mid_attention=attention)
    twin = twin_autoencoder.AutoencoderKL(config)
    assert abstract(AutoencoderKL, config).decoder_flops(8, 4) == counted(twin.decode, torch.zeros(1, 4, 8, 4))


def test_tiny_decoder_agrees_with_diffusers():
    diffusers = pytest.importorskip("diffusers")
    config = AutoencoderTinyConfig(width=8, encoder_blocks=(1, 2, 1), decoder_blocks=(1, 2, 1))
    theirs = diffusers.AutoencoderTiny(
        encoder_block_out_channels=(8,) * 3,
        decoder_block_out_channels=(8,) * 3,
        num_encoder_blocks=config.encoder_blocks,
        num_decoder_blocks=config.decoder_blocks,
    )
    found = abstract(AutoencoderTiny, config).decoder_flops(4, 8)
    assert found == counted(theirs.decoder, torch.zeros(1, 4, 4, 8))


def test_a_second_time_costs_two_more_linear_layers():
    config = UNetConfig(model_channels=32, channel_mult=(1,), num_res_blocks=1)
    more = dataclasses.replace(config, time_inputs=2).flops(8, 8) - config.flops(8, 8)
    assert more == 2 * (32 * 128 + 128 * 128)


def test_pixels_need_no_decoder():
    assert load_first_stage("identity").model.decoder_flops(8, 8) == 0
