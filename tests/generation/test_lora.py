"""LoRA files merged at load, against diffusers' own layers."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fmboost_jax.boosting.diffusers import TorchBase, load_pipeline
from fmboost_jax.errors import InputError
from fmboost_jax.generation.generator import Generator
from tests.commands import call_refused
from tests.conftest import relative_error
from tests.generation.small_pipelines import small_pipeline

peft = pytest.importorskip("peft")
pytest.importorskip("torchax")

pytestmark = pytest.mark.filterwarnings("ignore:the latents' standard deviation")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    small_pipeline("sd").save_pretrained(folder)
    return folder


def _write_lora(kind: str, folder, *, encoder: bool = False):
    """A LoRA of attention and convolutions with random weights, as its trainers write it."""
    pipe = small_pipeline(kind)
    options = {"r": 2, "lora_alpha": 6, "init_lora_weights": False}
    pipe.unet.add_adapter(peft.LoraConfig(target_modules=["to_q", "to_k", "to_out.0", "conv1"], **options))
    layers = {"unet_lora_layers": peft.get_peft_model_state_dict(pipe.unet)}
    if encoder:
        pipe.text_encoder.add_adapter(peft.LoraConfig(target_modules=["q_proj", "fc1"], **options))
        layers["text_encoder_lora_layers"] = peft.get_peft_model_state_dict(pipe.text_encoder)
    type(pipe).save_lora_weights(str(folder), **layers)
    return folder


def test_agrees_with_diffusers(base, tmp_path):
    file = _write_lora("sd", tmp_path / "lora", encoder=True) / "pytorch_lora_weights.safetensors"
    noise = np.random.default_rng(0).standard_normal((1, 8, 8, 4), np.float32)
    pipe = small_pipeline("sd")
    options = {"latents": torch.tensor(noise.transpose(0, 3, 1, 2)), "output_type": "latent", "num_inference_steps": 2}
    without = pipe("a cat", **options).images.numpy().transpose(0, 2, 3, 1)
    pipe.load_lora_weights(str(file))
    expected = pipe("a cat", **options).images.numpy().transpose(0, 2, 3, 1)
    generator = Generator.load(base, lora=[file])
    found = generator.latents("a cat", steps=2, noise=noise)
    assert relative_error(found, expected) < 1e-4
    assert relative_error(without, expected) > 1e-2
    assert generator.name == f"{base.name} + {file.name}"


def test_scheduler_of_a_distilled_lora(base, tmp_path):
    folder = _write_lora("sd", tmp_path)
    generator = Generator.load(base, lora=[folder], scheduler="LCMScheduler")
    found = generator.latents("a cat", steps=2, guidance=1.0)
    pipe = load_pipeline(str(base), lora=[folder], scheduler="LCMScheduler")
    assert not any("lora" in name for name, _ in pipe.unet.named_parameters())
    assert TorchBase(pipe).latents(["a cat"], steps=2, guidance=1.0).shape == found.shape
    with pytest.raises(InputError, match="scheduler 'LCM': expected a class of diffusers, such as LCMScheduler"):
        load_pipeline(str(base), scheduler="LCM")


def test_refused(base, tmp_path):
    other = _write_lora("sdxl", tmp_path / "sdxl")
    with pytest.raises(InputError, match=r"LoRA .*sdxl was made for another model than StableDiffusionPipeline \("):
        load_pipeline(str(base), lora=[other])
    words = ("--prompt", "a cat", "--base", base, "--lora", other, "--out", tmp_path / "out")
    assert "was made for another model" in call_refused("sample", *words)
    names = tmp_path / "names.safetensors"
    save_file(
        {"unet.elsewhere.lora_A.weight": torch.ones(2, 32), "unet.elsewhere.lora_B.weight": torch.ones(8, 2)}, names
    )
    with pytest.raises(InputError, match="was made for another model than StableDiffusionPipeline"):
        load_pipeline(str(base), lora=[names])
    with pytest.raises(InputError, match=r"LoRA .*missing: expected a safetensors file or a hub id"):
        load_pipeline(str(base), lora=[tmp_path / "missing"])
