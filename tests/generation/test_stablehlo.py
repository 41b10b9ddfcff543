"""A generator's exported folder, run by the code on its page in a process where PyTorch cannot be imported."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest

from fmboost_jax.boosting.booster import Booster
from fmboost_jax.errors import InputError
from fmboost_jax.flow.coupling import Coupling
from fmboost_jax.generation.generator import Generator
from fmboost_jax.generation.stablehlo import write_generator
from fmboost_jax.interop.autoencoders import load_first_stage
from fmboost_jax.models.unet import UNet
from tests.boosting.test_pipelines import UNET
from tests.generation.small_pipelines import small_flux2, small_pipeline
from tests.random_models import random_model

pytest.importorskip("torchax")
pytest.importorskip("flatbuffers")

pytestmark = pytest.mark.filterwarnings("ignore:the latents' standard deviation")

WITHOUT_TORCH = """
import sys
for name in ("torch", "torchax", "diffusers", "transformers", "flax", "fmboost_jax"):
    sys.modules[name] = None
"""


def _run_page(folder):
    code = re.search(r"```python\n(.*)```", (folder / "README.md").read_text(), re.DOTALL).group(1)
    code = f"{WITHOUT_TORCH}\n{code}\nnp.save('images.npy', images)"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, check=True, timeout=600)
    return np.load(folder / "images.npy").astype(int)


def test_page_makes_the_same_images(tmp_path):
    pipe = small_pipeline("sd")
    pipe.vae.save_pretrained(tmp_path / "vae")
    coupling = Coupling(noise_step=100, upsampling="psu")
    booster = Booster(random_model(UNet, UNET), load_first_stage("kl", str(tmp_path / "vae")), coupling, 2)
    generator = Generator(pipe, [booster])
    options = {"steps": 2, "boost_steps": 1}
    write_generator(tmp_path / "out", generator, batch_size=2, negative_prompt="blurred", **options)
    found = _run_page(tmp_path / "out")
    expected = generator(["prompt 1", "prompt 2"], negative_prompts="blurred", **options)
    assert found.shape == (2, 32, 32, 3)
    assert np.abs(found - expected).max() <= 1
    with pytest.raises(InputError, match="out exists"):
        write_generator(tmp_path / "out", generator, **options)
    with pytest.raises(InputError, match="batch_size must be 1 or more, found 0"):
        write_generator(tmp_path / "none", generator, batch_size=0)


def test_chat_template_and_masks(tmp_path):
    generator = Generator(small_flux2(), dtype="bfloat16")
    write_generator(tmp_path / "out", generator, steps=1, height=16, width=8)
    found = _run_page(tmp_path / "out")
    expected = generator("prompt 1", steps=1, height=16, width=8)
    assert found.shape == expected.shape
    assert np.abs(found - expected).mean() < 1
