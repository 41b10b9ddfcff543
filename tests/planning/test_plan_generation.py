"""`python -m fmboost_jax.plan --mode generate`: a tiny pipeline, compiled for a TPU that this machine does not have."""

import math

import diffusers
import pytest

from fmboost_jax.configuration import read_config
from fmboost_jax.errors import InputError
from fmboost_jax.flow.solvers import Solver
from fmboost_jax.generation.pipelines import check_supported
from fmboost_jax.parallel.mesh import make_mesh
from fmboost_jax.planning.generation import describe_parts, plan_generation, sd15_lcm
from fmboost_jax.planning.topologies import tpu_slice
from fmboost_jax.training.config import TrainingConfig
from tests.commands import call_refused
from tests.planning.test_plan import TINY

pytest.importorskip("libtpu")
pytest.importorskip("torchax")

SMALL_UNET = {
    "block_out_channels": (32,),
    "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D",),
    "mid_block_type": None,
    "up_block_types": ("UpBlock2D",),
    "cross_attention_dim": 16,
}
SMALL_TEXT = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


def test_architecture_of_published_weights():
    _, weights = check_supported(pipe := sd15_lcm()).from_pipeline(pipe, "bfloat16")
    sizes = {name: sum(math.prod(shape.shape) for shape in part.values()) for name, part in weights.items()}
    # Stable Diffusion 1.5's UNet, and the embedding of the guidance scale; CLIP's encoder and its 77 position numbers.
    assert sizes["denoiser"] == 859_520_964 + 256 * 320
    assert sizes["encoder"] == 123_060_480 + 77


@pytest.fixture(scope="module")
def tpus():
    return tpu_slice("v6e:1x1")


def _plan(tpus, cache, *overrides):
    words = (*TINY[1:], "--config.train.batch_size=2", f"--config.compilation_cache={cache}", *overrides)
    config = read_config("configs/cfm1024.py", list(words), TrainingConfig)
    mesh = make_mesh({"data": -1, "fsdp": 1, "spatial": 1}, tpus.devices)
    return plan_generation(sd15_lcm(SMALL_UNET, SMALL_TEXT), config, tpus, mesh, Solver(steps=4), steps=4)


def test_parts_of_a_small_pipeline(tpus, tmp_path):
    narrow = {"block_out_channels": (8,) * 4, "norm_num_groups": 4, "layers_per_block": 1}
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    diffusers.AutoencoderKL(**narrow, **blocks).save_pretrained(tmp_path / "vae")
    parts = _plan(tpus, tmp_path, f"--config.first_stage.path={tmp_path / 'vae'}")
    assert [part.name for part in parts] == ["text", "base", "flow", "decode"]
    assert all(part.memory.fits and part.seconds > 0 and 0 < part.mfu < 1 for part in parts)
    total = sum(part.seconds for part in parts)
    assert f"{2 / total:.1f} images/s" in describe_parts(parts, 2, "heading")


def test_refused(tpus, tmp_path):
    line = call_refused("plan", "--mode=generate", "--base=/nowhere", "--topology=v6e:1x1")
    assert "base model /nowhere: expected a diffusers pipeline's folder or hub id" in line
    with pytest.raises(InputError, match="the base model's latents have 4 channels, the flow's state 16"):
        _plan(tpus, tmp_path, "--config.unet.in_channels=32", "--config.unet.out_channels=16")
