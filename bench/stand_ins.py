"""A latent consistency model of Stable Diffusion's architecture with random weights, and a booster of its latents."""

import dataclasses
import pathlib
from typing import Any

import jax

from fmboost_jax.boosting.booster import Booster
from fmboost_jax.flow.coupling import Coupling
from fmboost_jax.interop.autoencoders import load_first_stage
from fmboost_jax.models.networks import make_network
from fmboost_jax.models.unet import UNetConfig


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Sizes of the networks.

    Attributes:
        unet: channels of the base model's levels.
        text: width of the text encoder; a multiple of 64.
        text_layers: its layers.
        blocks: residual blocks of a level of the base model and of the autoencoder's encoder.
        vae: channels of the autoencoder's levels; latents are 2^(levels − 1) times smaller than images.
        latent: side of the base model's latents.
        booster: the velocity network.
    """

    unet: tuple[int, ...]
    text: int
    text_layers: int
    blocks: int
    vae: tuple[int, ...]
    latent: int
    booster: UNetConfig


_TINY_NETWORK = UNetConfig(model_channels=32, channel_mult=(1, 1), num_res_blocks=1, num_heads=1)
SIZES = {
    # Stable Diffusion 1.5, and the paper's network.
    "sd15": Sizes((320, 640, 1280, 1280), 768, 12, 2, (128, 256, 512, 512), 64, UNetConfig()),
    "tiny": Sizes((32, 32), 64, 1, 1, (32, 32), 8, _TINY_NETWORK),
}


def random_pipeline(sizes: Sizes) -> Any:
    """Return diffusers' pipeline; its tokenizer knows single bytes."""
    import diffusers
    import torch
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    words = _byte_tokenizer()
    last = len(sizes.unet) - 1
    text = CLIPTextConfig(
        hidden_size=sizes.text,
        intermediate_size=4 * sizes.text,
        num_hidden_layers=sizes.text_layers,
        num_attention_heads=sizes.text // 64,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )
    unet = diffusers.UNet2DConditionModel(
        block_out_channels=sizes.unet,
        layers_per_block=sizes.blocks,
        down_block_types=("CrossAttnDownBlock2D",) * last + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * last,
        sample_size=sizes.latent,
        cross_attention_dim=sizes.text,
        time_cond_proj_dim=256,
    )
    vae = diffusers.AutoencoderKL(
        block_out_channels=sizes.vae,
        down_block_types=("DownEncoderBlock2D",) * len(sizes.vae),
        up_block_types=("UpDecoderBlock2D",) * len(sizes.vae),
        layers_per_block=sizes.blocks,
    )
    pipe = diffusers.LatentConsistencyModelPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(text),
        tokenizer=words,
        unet=unet,
        scheduler=diffusers.LCMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def random_booster(pipe: Any, sizes: Sizes, folder: pathlib.Path, dtype: str) -> Booster:
    """Return a ×2 booster of a pipeline's latents; the folder gets the pipeline's autoencoder."""
    pipe.vae.save_pretrained(folder)
    network = make_network(dataclasses.replace(sizes.booster, dtype=dtype), jax.random.key(0))
    return Booster(network, load_first_stage("kl", folder, dtype), Coupling(upsampling="lsu"), 2)


def _byte_tokenizer() -> Any:
    """CLIP's tokenizer without merges: each byte within and at the end of a word, and the two special tokens."""
    from transformers import CLIPTokenizer

    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    characters = [chr(byte) for byte in sorted(printable)] + [chr(256 + n) for n in range(256 - len(printable))]
    tokens = [*characters, *(f"{character}</w>" for character in characters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[], model_max_length=77)
