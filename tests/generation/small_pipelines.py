"""Pipelines of diffusers with small networks of random weights, as its own tests build them."""

from typing import Any

import diffusers
import torch
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from tests.boosting.test_pipelines import tokenizer

SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
SCHEDULERS = {
    "sd": diffusers.PNDMScheduler(**SCHEDULE, skip_prk_steps=True),
    "sd2": diffusers.DDIMScheduler(**SCHEDULE, prediction_type="v_prediction", timestep_spacing="trailing"),
    "lcm": diffusers.LCMScheduler(**SCHEDULE),
    "sdxl": diffusers.EulerDiscreteScheduler(**SCHEDULE, timestep_spacing="leading"),
    "lcm_sdxl": diffusers.LCMScheduler(**SCHEDULE),
    "turbo": diffusers.EulerAncestralDiscreteScheduler(**SCHEDULE, timestep_spacing="trailing"),
}


def small_pipeline(kind: str) -> Any:
    """A pipeline of a key of `SCHEDULERS`."""
    torch.manual_seed(0)
    xl, words = kind not in ("sd", "sd2", "lcm"), tokenizer()
    vae = diffusers.AutoencoderKL(
        block_out_channels=(32, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        sample_size=16,
    )
    text = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        projection_dim=16,
        bos_token_id=512,
        eos_token_id=513,
        pad_token_id=513,
    )
    unet = diffusers.UNet2DConditionModel(
        block_out_channels=(32, 32),
        layers_per_block=1,
        sample_size=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32 if xl else 16,
        time_cond_proj_dim=32 if "lcm" in kind else None,
        **(
            {
                "addition_embed_type": "text_time",
                "addition_time_embed_dim": 8,
                "projection_class_embeddings_input_dim": 8 * 6 + 16,
            }
            if xl
            else {}
        ),
    )
    common: dict[str, Any] = {
        "vae": vae,
        "tokenizer": words,
        "text_encoder": CLIPTextModel(text),
        "unet": unet,
        "scheduler": SCHEDULERS[kind],
    }
    if xl:
        second = CLIPTextModelWithProjection(text)
        pipe = diffusers.StableDiffusionXLPipeline(
            **common, tokenizer_2=words, text_encoder_2=second, add_watermarker=False
        )
    else:
        made = diffusers.StableDiffusionPipeline if kind in ("sd", "sd2") else diffusers.LatentConsistencyModelPipeline
        pipe = made(**common, safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def small_sd3(*, t5: bool = True) -> Any:
    """Stable Diffusion 3: latents of 4 channels, 2× smaller than the image, normalised by nothing."""
    from transformers import T5Config, T5EncoderModel

    torch.manual_seed(0)
    words, base = tokenizer(), small_pipeline("sd")
    text = {"vocab_size": len(words), "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2}
    config = CLIPTextConfig(
        **text, num_attention_heads=2, projection_dim=16, bos_token_id=512, eos_token_id=513, pad_token_id=513
    )
    long = T5Config(vocab_size=len(words), d_model=40, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=40,
        caption_projection_dim=16,
        pooled_projection_dim=32,
        out_channels=4,
        pos_embed_max_size=8,
    )
    pipe = diffusers.StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=base.vae,
        text_encoder=CLIPTextModelWithProjection(config),
        tokenizer=words,
        text_encoder_2=CLIPTextModelWithProjection(config),
        tokenizer_2=words,
        text_encoder_3=T5EncoderModel(long).eval() if t5 else None,
        tokenizer_3=words if t5 else None,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def small_flux2(distilled: bool = True) -> Any:
    """FLUX.2 [klein]: latents of 4 channels, 2× smaller than the image."""
    torch.manual_seed(0)
    words = tokenizer()
    words.chat_template = "{{ messages[0]['content'] }}"
    vae = diffusers.AutoencoderKLFlux2(
        block_out_channels=(32, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        latent_channels=4,
        sample_size=16,
    ).eval()
    vae.bn.running_mean.normal_()
    vae.bn.running_var.uniform_(2.0, 4.0)
    # Its third hidden state that the transformer reads is that of layer 27.
    text = Qwen3Config(
        vocab_size=len(words),
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=27,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=8,
    )
    transformer = diffusers.Flux2Transformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=24,
        timestep_guidance_channels=256,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=False,
    )
    pipe = diffusers.Flux2KleinPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=vae,
        text_encoder=Qwen3ForCausalLM(text),
        tokenizer=words,
        transformer=transformer,
        is_distilled=distilled,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe
