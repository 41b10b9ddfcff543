"""Prompt to image in JAX against diffusers' own pipelines, from the same noise."""

import sys
import types

import diffusers
import jax
import numpy as np
import pytest
import torch

from fmboost_jax.boosting import interactive
from fmboost_jax.boosting.booster import Booster
from fmboost_jax.boosting.diffusers import TorchBase
from fmboost_jax.boosting.latent_formats import scaled_latents
from fmboost_jax.errors import InputError
from fmboost_jax.flow.coupling import Coupling
from fmboost_jax.generation.base import load_base
from fmboost_jax.generation.generator import Generator
from fmboost_jax.interop.autoencoders import load_first_stage
from fmboost_jax.models.unet import UNet
from fmboost_jax.runtime.timing import CompileClock
from tests.boosting.test_pipelines import UNET
from tests.conftest import relative_error
from tests.generation.small_pipelines import small_flux2, small_pipeline, small_sd3
from tests.random_models import random_model

pytest.importorskip("torchax")

# Networks of random weights make latents of any size.
pytestmark = pytest.mark.filterwarnings("ignore:the latents' standard deviation")

PROMPTS = ["a cat", "a lighthouse at night"]


@pytest.fixture(scope="module")
def booster(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vae")
    small_pipeline("sd").vae.save_pretrained(folder)
    coupling = Coupling(noise_step=100, upsampling="lsu")
    return Booster(random_model(UNet, UNET), load_first_stage("kl", str(folder)), coupling, 2)


def _noises(seeds: list[int], steps: int) -> np.ndarray:
    """What the generator draws: (1 + steps, b, 8, 8, 4)."""

    def draw(seed, step):
        key = jax.random.fold_in(jax.random.key(seed), step)
        return jax.random.normal(key, (8, 8, 4))

    return np.stack([np.stack([draw(seed, step) for seed in seeds]) for step in range(1 + steps)])


def _diffusers_latents(pipe, noises: np.ndarray, monkeypatch, **options) -> np.ndarray:
    nchw = torch.tensor(noises.transpose(0, 1, 4, 2, 3))
    drawn = iter(nchw[1:])
    monkeypatch.setattr(f"{type(pipe.scheduler).__module__}.randn_tensor", lambda *a, **k: next(drawn), raising=False)
    result = pipe(PROMPTS, latents=nchw[0], output_type="latent", **options).images
    return result.numpy().transpose(0, 2, 3, 1)


@pytest.mark.parametrize(
    ("kind", "steps", "ours", "theirs"),
    [
        ("sd", 5, {"negative_prompts": "blurred", "guidance_rescale": 0.7}, {"guidance_rescale": 0.7}),
        ("lcm", 3, {}, {}),
        ("sdxl", 3, {}, {}),
        ("lcm_sdxl", 2, {}, {}),
        ("turbo", 2, {"guidance": 0.0}, {"guidance_scale": 0.0}),
        ("sd2", 2, {}, {}),
    ],
)
def test_agrees_with_diffusers(kind, steps, ours, theirs, booster, monkeypatch):
    pipe = small_pipeline(kind)
    if "negative_prompts" in ours:
        theirs = {**theirs, "negative_prompt": [ours["negative_prompts"]] * 2}
    noises = _noises([3, 4], steps)
    expected = _diffusers_latents(pipe, noises, monkeypatch, num_inference_steps=steps, **theirs)
    generator = Generator(pipe, [booster])
    found = generator.latents(PROMPTS, steps=steps, seed=3, **ours)
    assert relative_error(found, expected) < 1e-4
    images = generator(PROMPTS, steps=steps, seed=3, boost_steps=1, **ours)
    reference = booster.decode(booster.boost(expected, steps=1, seed=3))
    error = np.mean((images.astype(float) - reference) ** 2)
    assert 10 * np.log10(255**2 / max(error, 1e-9)) > 50


@pytest.fixture(scope="module")
def generator(booster):
    return Generator(small_pipeline("lcm"), [booster])


def test_second_call_compiles_nothing(generator):
    first = generator(PROMPTS, steps=3, seed=3, boost_steps=1)
    with CompileClock() as clock:
        second = generator(["a boat", "a dog in a hat"], steps=3, seed=9, guidance=3.0, boost_steps=1)
    assert clock.compiling == 0
    assert first.shape == second.shape == (2, 32, 32, 3)
    alone = generator.latents(PROMPTS[1], steps=3, seed=4)
    assert relative_error(alone[0], generator.latents(PROMPTS, steps=3, seed=3)[1]) < 1e-5


def test_images_have_the_consistency_of_the_booster(generator, booster, monkeypatch):
    small = generator.latents(PROMPTS, steps=3, seed=3)
    boosted = booster.boost(small, steps=1, seed=3)
    monkeypatch.setattr(booster, "consistency", 0.5)
    found = generator(PROMPTS, steps=3, seed=3, boost_steps=1)
    np.testing.assert_array_equal(found, booster.decode_boosted(boosted, small, 0.5))
    assert np.any(found != booster.decode(boosted))


def test_web_page_boosts_a_prompt(generator, booster, monkeypatch):
    settings = interactive.Settings(steps=1, seed=3)
    found = interactive.boost_prompt(booster, "small", generator, "a cat", settings, report=lambda *_: None)
    expected = booster.boost(generator.latents(["a cat"], seed=3), steps=1, seed=3)
    np.testing.assert_array_equal(found.after, booster.decode(expected)[0])
    assert (found.settings["base_backend"], found.settings["prompt"]) == ("jax", "a cat")
    settings = interactive.Settings(steps=1, seed=3, colour_fix="consistency")
    monkeypatch.setattr(booster, "consistency", 0.5)
    found = interactive.boost_prompt(booster, "small", generator, "a cat", settings, report=lambda *_: None)
    expected = booster.decode_boosted(expected, generator.latents(["a cat"], seed=3), 0.5)
    np.testing.assert_array_equal(found.after, expected[0])
    assert found.settings["consistency"] == 0.5
    with pytest.raises(InputError, match="type a prompt first"):
        interactive.boost_prompt(booster, "small", generator, " ", settings, report=lambda *_: None)


def test_devices_share_a_batch(booster, generator):
    shared = Generator(small_pipeline("lcm"), [booster], devices=jax.devices()[:2], fsdp=2)
    found = shared.latents(PROMPTS, steps=3, seed=3)
    assert relative_error(found, generator.latents(PROMPTS, steps=3, seed=3)) < 1e-5


def test_cutting_a_long_prompt_gives_a_warning(generator):
    with pytest.warns(UserWarning, match=r"a prompt of 82 tokens was cut to 77; cut off: .*zzzz"):
        generator.pipeline.tokens(["x" * 76 + "zzzz"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompts": []}, "no prompt"),
        ({"negative_prompts": ["a"]}, "2 prompts need as many negative prompts, found 1"),
        ({"height": 17}, "height 17: this base model needs a multiple of 2"),
        ({"steps": 51}, "the sampler takes 1 to 50 steps, found 51"),
        ({"noise": np.zeros((2, 4, 4, 4))}, r"noise must be \(2, 8, 8, 4\)"),
    ],
)
def test_bad_arguments(options, message, generator):
    with pytest.raises(InputError, match=message):
        generator.latents(**{"prompts": PROMPTS, "steps": 3, **options})


def test_refused_before_weights_move(booster):
    pipe = small_pipeline("sd")
    with pytest.raises(InputError, match="dtype must be"):
        Generator(pipe, [booster], dtype="float16")
    pipe.scheduler = torch.nn.Identity()
    pipe.scheduler.config = {}
    with pytest.raises(InputError, match="scheduler 'Identity' is unknown"):
        Generator(pipe, [booster])
    assert pipe.unet.device.type == "cpu"
    with pytest.raises(InputError, match="pipeline 'Linear' is unknown; expected one of Flux2Klein"):
        Generator(torch.nn.Linear(1, 1), [booster])


@pytest.mark.parametrize("t5", [True, False])
def test_sd3_agrees_with_diffusers(t5):
    pipe = small_sd3(t5=t5)
    noise = np.random.default_rng(0).standard_normal((2, 8, 4, 4), np.float32)
    options = {"num_inference_steps": 2, "height": 16, "width": 8, "guidance_scale": 3.0}
    planes = pipe(PROMPTS, latents=torch.tensor(noise.transpose(0, 3, 1, 2)), output_type="latent", **options).images
    generator = Generator(pipe)
    found = generator.latents(PROMPTS, steps=2, noise=noise, height=16, width=8, guidance=3.0)
    assert relative_error(found, planes.numpy().transpose(0, 2, 3, 1)) < 1e-4


def test_flux2_agrees_with_diffusers():
    pipe = small_flux2(distilled=False)
    noise = np.random.default_rng(0).standard_normal((2, 8, 4, 4), np.float32)
    packed = pipe._patchify_latents(torch.tensor(noise.transpose(0, 3, 1, 2)))
    options = {"num_inference_steps": 2, "height": 16, "width": 8, "guidance_scale": 3.0}
    raw = pipe(prompt=PROMPTS, latents=packed, output_type="latent", **options).images
    expected = scaled_latents(pipe, raw, (16, 8)).numpy().transpose(0, 2, 3, 1)
    with torch.no_grad():
        image = pipe.vae.decode(raw, return_dict=False)[0].numpy().transpose(0, 2, 3, 1)
    generator = Generator(pipe)
    found = generator.latents(PROMPTS, steps=2, noise=noise, height=16, width=8, guidance=3.0)
    assert relative_error(found, expected) < 1e-4
    error = generator.decode(found) - np.clip((image + 1) * 127.5, 0, 255)
    assert 10 * np.log10(255**2 / np.mean(error**2)) > 50
    with pytest.raises(InputError, match="height 18: this base model needs a multiple of 4"):
        generator.latents(PROMPTS, height=18)


def test_base_model_alone():
    pipe = small_pipeline("lcm")
    vae = pipe.vae
    generator = Generator(pipe, dtype="bfloat16")
    latents = generator.latents(PROMPTS, steps=1, seed=3)
    exact = Generator(small_pipeline("lcm")).latents(PROMPTS, steps=1, seed=3)
    assert 1e-4 < relative_error(latents, exact) < 0.1
    images = generator(PROMPTS, steps=1, seed=3)
    with torch.no_grad():
        nchw = torch.tensor(np.array(latents).transpose(0, 3, 1, 2)) / vae.config.scaling_factor
        expected = vae.decode(nchw).sample.numpy().transpose(0, 2, 3, 1)
    assert np.abs(images - np.clip((expected + 1) * 127.5, 0, 255)).mean() < 4
    with pytest.raises(InputError, match="boost_steps 2: this generator has no booster"):
        generator(PROMPTS, steps=1, boost_steps=2)


def test_backends(booster, tmp_path, capsys):
    pipe = small_pipeline("sd")
    pipe.save_pretrained(tmp_path / "known")
    pipe.scheduler = diffusers.DDPMScheduler()
    pipe.save_pretrained(tmp_path / "unknown")
    found = load_base(str(tmp_path / "known"), [booster])
    assert isinstance(found, Generator)
    assert (found.name, found.backend) == ("known", "jax")
    assert "base model in PyTorch" not in capsys.readouterr().err
    found = load_base(str(tmp_path / "unknown"), [booster])
    assert isinstance(found, TorchBase)
    err = capsys.readouterr().err
    assert "base model in PyTorch: scheduler 'DDPMScheduler' is unknown" in err
    assert found.latents(PROMPTS, steps=1, seed=3, batch_size=1).shape == (2, 8, 8, 4)
    with pytest.raises(InputError, match="scheduler 'DDPMScheduler' is unknown"):
        load_base(str(tmp_path / "unknown"), [booster], "jax")
    assert isinstance(load_base(str(tmp_path / "known"), [booster], "torch"), TorchBase)


def test_missing_or_old_torchax(booster, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchax", None)
    with pytest.raises(InputError, match=r"torchax 0\.0\.14 or newer .* pip install 'fmboost_jax\[generate\]'"):
        Generator(small_pipeline("lcm"), [booster])
    monkeypatch.setitem(sys.modules, "torchax", types.ModuleType("torchax"))
    with pytest.raises(InputError, match=r"pip install 'fmboost_jax\[generate\]'"):
        Generator(small_pipeline("lcm"), [booster])
