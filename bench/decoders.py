"""Stable Diffusion's decoder at work, ours and diffusers', with the same random weights."""

import functools
import pathlib

import numpy as np

from bench.alternation import Implementation

# SD 1.x: widths, blocks, four latent channels.
SETTINGS = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "scaling_factor": 0.18215,
}


def write_decoder(folder: pathlib.Path) -> None:
    """A diffusers folder of random weights."""
    import torch
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    AutoencoderKL(**SETTINGS).save_pretrained(folder)


def decoding(folder: pathlib.Path, batch: int, latent: int) -> list[Implementation]:
    """Who decodes: ours first."""
    peers = {
        "diffusers, eager": {},
        "diffusers, eager, channels last": {"channels_last": True},
        "diffusers, torch.compile, channels last": {"channels_last": True, "compiled": True},
    }
    shape = (batch, latent, latent, 4)
    return [
        Implementation("fmboost_jax", functools.partial(decode_ours, folder, shape)),
        *(
            Implementation(name, functools.partial(decode_diffusers, folder, shape, **how))
            for name, how in peers.items()
        ),
    ]


def decode_ours(folder: pathlib.Path, shape: tuple[int, ...]):
    """One decode of latents of this shape; bfloat16 on a GPU."""
    import jax

    from fmboost_jax.interop.autoencoders import load_first_stage

    stage = load_first_stage("kl", str(folder), "bfloat16" if jax.default_backend() == "gpu" else "float32")
    latents = jax.numpy.asarray(_latents(shape))
    return lambda: stage.decode(latents).block_until_ready()


def decode_diffusers(folder: pathlib.Path, shape: tuple[int, ...], channels_last: bool = False, compiled: bool = False):
    """The same in PyTorch; bfloat16 by autocast on a GPU."""
    import torch
    from diffusers import AutoencoderKL

    device = "cuda" if torch.cuda.is_available() else "cpu"
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = AutoencoderKL.from_pretrained(folder).to(device).to(memory_format=layout)
    decode = torch.compile(model.decode) if compiled else model.decode
    latents = torch.from_numpy(_latents(shape)).permute(0, 3, 1, 2).to(device).contiguous(memory_format=layout)

    def run():
        with torch.inference_mode(), torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda"):
            return decode(latents / model.config.scaling_factor).sample.sum().item()  # waits for a GPU

    return run


def _latents(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(1).standard_normal(shape, np.float32)
