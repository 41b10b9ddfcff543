"""Latents of small random pipelines: their own autoencoder decodes them to the pipeline's image."""

import numpy as np
import pytest

from fmboost_jax.boosting.latent_formats import pipeline_latents, scaled_latents

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

FLOW = diffusers.FlowMatchEulerDiscreteScheduler()


def _chroma():
    transformer = diffusers.ChromaTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=8,
        axes_dims_rope=(4, 4, 8),
        approximator_num_channels=8,
        approximator_hidden_dim=8,
        approximator_layers=1,
    )
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        scaling_factor=1.5,
        shift_factor=0.1,
    )
    pipe = diffusers.ChromaPipeline(FLOW, vae, None, None, transformer)
    embeddings = {"prompt_embeds": torch.randn(1, 4, 8), "prompt_attention_mask": torch.ones(1, 4, dtype=torch.bool)}
    return pipe, {**embeddings, "guidance_scale": 1.0}


def _qwen():
    transformer = diffusers.QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=16,
        out_channels=4,
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=8,
        axes_dims_rope=(8, 4, 4),
    )
    vae = diffusers.AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 2],
        num_res_blocks=1,
        temperal_downsample=[True],
        latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[1.5, 2.0, 0.5, 1.0],
    )
    pipe = diffusers.QwenImagePipeline(FLOW, vae, None, None, transformer)
    return pipe, {"prompt_embeds": torch.randn(1, 4, 8), "prompt_embeds_mask": torch.ones(1, 4, dtype=torch.int64)}


def _sana():
    transformer = diffusers.SanaTransformer2DModel(
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_attention_heads=2,
        attention_head_dim=4,
        num_cross_attention_heads=2,
        cross_attention_head_dim=4,
        cross_attention_dim=8,
        caption_channels=8,
        sample_size=8,
    )
    blocks = {"block_types": ("ResBlock", "ResBlock"), "block_out_channels": (8, 8), "layers_per_block": (1, 1)}
    vae = diffusers.AutoencoderDC(
        latent_channels=4,
        attention_head_dim=4,
        encoder_qkv_multiscales=((), ()),
        decoder_qkv_multiscales=((), ()),
        scaling_factor=0.41407,
        **{f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in blocks.items()},
    )
    pipe = diffusers.SanaPipeline(None, None, vae, transformer, FLOW)
    embeddings = {"prompt_embeds": torch.randn(1, 4, 8), "prompt_attention_mask": torch.ones(1, 4, dtype=torch.int64)}
    return pipe, {
        **embeddings,
        "guidance_scale": 1.0,
        "use_resolution_binning": False,
        "complex_human_instruction": None,
    }


def _raw(pipe, planes):
    """Scaled latents → what the autoencoder decodes."""
    config = pipe.vae.config
    if "latents_std" in config and config.latents_std:
        mean, deviation = (torch.tensor(v).reshape(1, -1, 1, 1) for v in (config.latents_mean, config.latents_std))
        return (planes * deviation + mean)[:, :, None]
    return planes / config.scaling_factor + config.get("shift_factor", 0.0)


@pytest.mark.parametrize("make", [_chroma, _qwen, _sana])
def test_latents_decode_to_the_pipelines_image(make):
    torch.manual_seed(0)
    pipe, options = make()
    pipe.set_progress_bar_config(disable=True)
    options |= {"height": 64, "width": 32, "num_inference_steps": 1}

    def run(kind):
        return pipe(**options, output_type=kind, generator=torch.Generator().manual_seed(1)).images

    planes = scaled_latents(pipe, run("latent"), (64, 32))
    spec = pipeline_latents(pipe)
    assert (spec.channels, spec.downsampling) == (4, 2)
    assert planes.shape == (1, 4, 32, 16)
    assert spec.normalized == (make is _qwen)
    with torch.no_grad():
        image = pipe.vae.decode(_raw(pipe, planes), return_dict=False)[0].reshape(1, 3, 64, 32)
    found = (image / 2 + 0.5).clamp(0, 1)
    np.testing.assert_allclose(found, run("pt"), atol=1e-5)
