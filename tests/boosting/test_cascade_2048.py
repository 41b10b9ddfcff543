"""A cascade to 2048² with small networks, all sizes real: 512² → 1024² → 2048², upsampled in pixels."""

import json
import subprocess
import sys

from tests.commands import ROOT, environment

# What the child may take in all, Python, JAX and compiler included; one 2048² map of 32 float32 channels has 0.5 GiB.
LIMIT_GIB = 3

CASCADE = """
import json
import numpy as np
from bench.memory import peak_gib
from fmboost_jax import Booster
from fmboost_jax.flow.coupling import Coupling
from fmboost_jax.models.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig
from fmboost_jax.models.first_stage import FirstStage, LatentSpec
from fmboost_jax.models.unet import UNet, UNetConfig
from tests.random_models import random_model

# The memory of attention over 256² positions has a test with the autoencoder.
autoencoder = AutoencoderKLConfig(channels=(8, 8, 8, 8), blocks=1, norm_groups=4, mid_attention=False)
stage = FirstStage(LatentSpec("kl", "", 4, 8, scaling_factor=0.18215), random_model(AutoencoderKL, autoencoder))
unet = random_model(UNet, UNetConfig(model_channels=32, channel_mult=(1, 1, 1), num_res_blocks=1, dim_head=16))
booster = Booster(unet, stage, Coupling(upsampling="psu"), 2)
latents = np.random.default_rng(0).standard_normal((1, 64, 64, 4), np.float32)
stages = booster.cascade(latents, [booster], steps=1, intermediates=True)
image = booster.decode(stages[-1])
found = {"shapes": [s.shape for s in stages], "image": image.shape, "std": float(image.std()), "gib": peak_gib()}
print(json.dumps(found))
"""


def test_a_cascade_to_2048():
    done = subprocess.run(
        [sys.executable, "-c", CASCADE], cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["shapes"] == [[1, side, side, 4] for side in (128, 256)]
    assert found["image"] == [1, 2048, 2048, 3]
    assert found["std"] > 1
    assert found["gib"] < LIMIT_GIB
