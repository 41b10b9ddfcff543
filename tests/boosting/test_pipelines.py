"""Prompt → latents → boost → image through real diffusers pipelines, small ones with random weights."""

import re
import runpy
import warnings

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from fmboost_jax.boosting.booster import Booster
from fmboost_jax.boosting.bundle import BundleConfig, write_bundle
from fmboost_jax.boosting.diffusers import boost_pipeline, load_pipeline, prompt_latents, to_jax
from fmboost_jax.errors import InputError
from fmboost_jax.files import atomic_folder
from fmboost_jax.flow.coupling import Coupling
from fmboost_jax.interop.autoencoders import load_first_stage
from fmboost_jax.models.parameters import split
from fmboost_jax.models.unet import UNet, UNetConfig
from tests.commands import ROOT, call, call_refused
from tests.random_models import random_model

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytest.importorskip("transformers")

# Networks of random weights make latents of any size.
pytestmark = pytest.mark.filterwarnings("ignore:the latents' standard deviation")

UNET = UNetConfig(in_channels=8, out_channels=4, model_channels=32, channel_mult=(1, 1), num_res_blocks=1, dim_head=16)
KINDS = ("stable_diffusion", "lcm")


def tokenizer():
    """CLIP's, of bytes alone: each byte within and at the end of a word, and the two special tokens."""
    from transformers import CLIPTokenizer

    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    characters = [chr(byte) for byte in printable] + [chr(256 + n) for n in range(len(others))]
    tokens = [*characters, *(f"{c}</w>" for c in characters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[], model_max_length=77)


def pipeline(kind):
    import diffusers
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    vae = diffusers.AutoencoderKL(
        block_out_channels=(32, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        sample_size=16,
    )
    words = tokenizer()
    text = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        bos_token_id=512,
        eos_token_id=513,
        pad_token_id=513,
    )
    lcm = kind == "lcm"
    unet = diffusers.UNet2DConditionModel(
        block_out_channels=(32,),
        layers_per_block=1,
        sample_size=8,
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        cross_attention_dim=32,
        time_cond_proj_dim=32 if lcm else None,
    )
    schedule = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}
    scheduler = (diffusers.LCMScheduler if lcm else diffusers.DDIMScheduler)(**schedule, steps_offset=1)
    made = diffusers.LatentConsistencyModelPipeline if lcm else diffusers.StableDiffusionPipeline
    pipe = made(
        vae=vae,
        text_encoder=CLIPTextModel(text),
        tokenizer=words,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        image_encoder=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Folders of both pipelines; their autoencoders are the same."""
    folder = tmp_path_factory.mktemp("bases")
    for kind in KINDS:
        pipeline(kind).save_pretrained(folder / kind)
    return folder


@pytest.fixture(scope="module")
def bundle(bases, tmp_path_factory):
    stage = load_first_stage("kl", str(bases / "lcm"))
    source = Coupling(noise_step=100, upsampling="lsu")
    config = BundleConfig(UNET, source, "linear", 2, 16, 32, stage.spec, 0)
    out = tmp_path_factory.mktemp("bundles") / "small"
    with atomic_folder(out) as folder:
        write_bundle(folder, split(random_model(UNet, UNET))[1], config)
    return out


@pytest.fixture(scope="module")
def booster(bundle):
    return Booster.load(bundle)


def test_the_notebook_runs(bases, bundle, monkeypatch):
    monkeypatch.setenv("FMBOOST_BASE", str(bases / "lcm"))
    monkeypatch.setenv("FMBOOST_BOOSTER", str(bundle))
    monkeypatch.setenv("FMBOOST_SMALL", "1")
    found = runpy.run_path(str(ROOT / "examples" / "prompt_to_1024.py"))
    assert found["images"].shape == (1, 32, 32, 3)


@pytest.mark.parametrize("kind", KINDS)
def test_prompt_to_image(kind, bases, booster):
    """The result is that of the single steps, with numpy between PyTorch and JAX."""
    pipe = load_pipeline(str(bases / kind))
    prompts = ["a cat", "a lighthouse at night"]
    images = boost_pipeline(pipe, prompts, booster, base_steps=2, steps=1, seed=3, guidance_scale=2.0)
    assert images.shape == (2, 32, 32, 3)
    generators = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
    options = {"num_inference_steps": 2, "guidance_scale": 2.0, "output_type": "latent"}
    latents = pipe(prompts, generator=generators, **options).images.numpy().transpose(0, 2, 3, 1)
    np.testing.assert_array_equal(images, booster.decode(booster.boost(latents, steps=1, seed=3)))
    alone = boost_pipeline(pipe, prompts[1], booster, base_steps=2, steps=1, seed=4, guidance_scale=2.0)
    assert np.abs(alone[0].astype(int) - images[1]).max() <= 1


def test_our_autoencoder_decodes_as_the_pipelines_does(bases, booster):
    pipe = load_pipeline(str(bases / "stable_diffusion"))
    latents = prompt_latents(pipe, "a cat", steps=2)
    with torch.no_grad():
        nchw = torch.from_numpy(np.array(latents).transpose(0, 3, 1, 2)) / pipe.vae.config.scaling_factor
        expected = pipe.vae.decode(nchw).sample.numpy().transpose(0, 2, 3, 1)
    found = booster.decode(latents).astype(float)
    assert np.abs(found - np.clip((expected + 1) * 127.5, 0, 255)).max() <= 1


def test_a_cascade_behind_a_pipeline(bases, booster, monkeypatch):
    pipe = load_pipeline(str(bases / "lcm"))
    monkeypatch.setattr(booster, "consistency", 0.5)
    images = boost_pipeline(pipe, "a cat", booster, base_steps=1, steps=1, cascade=[booster])
    assert images.shape == (1, 64, 64, 3)
    small = prompt_latents(pipe, "a cat", steps=1)
    large = booster.cascade(small, [booster], steps=1)
    np.testing.assert_array_equal(images, booster.decode_boosted(large, small, 0.5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_latents_pass_from_torch_to_jax_unchanged(dtype):
    tensor = torch.randn(2, 4, 3, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    found = to_jax(tensor.permute(0, 1, 3, 2))  # a view that is not contiguous
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(found, tensor.float().numpy().transpose(0, 3, 2, 1))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"scaling_factor": 0.13025}, "has scaling_factor 0.13025, this booster was trained for 0.18215"),
        ({"shift_factor": 0.1}, "has shift_factor 0.1, this booster was trained for 0.0"),
        ({"latent_channels": 16}, "has channels 16"),
        (
            {"latents_mean": [0.0] * 4},
            "normalised channel by channel, this booster was trained",
        ),
    ],
)
def test_a_pipeline_of_another_autoencoder_is_refused_before_it_runs(bases, booster, change, expected):
    pipe = load_pipeline(str(bases / "lcm"))
    pipe.vae.register_to_config(**change)
    with pytest.raises(InputError, match=expected):
        boost_pipeline(pipe, "a cat", booster, base_steps=-1)


def test_pipelines_without_latents_of_two_dimensions_are_refused(booster):
    class Packed:
        """Latents as tokens, as FLUX has them."""

        def __call__(self, **_):
            return type("Output", (), {"images": torch.zeros(1, 64, 16)})

    with pytest.raises(InputError, match="has no autoencoder"):
        boost_pipeline(Packed(), "a cat", booster)
    with pytest.raises(InputError, match=re.escape("found (1, 64, 16)")):
        prompt_latents(Packed(), "a cat")


def test_sample_boosts_a_prompt(bases, bundle, tmp_path):
    options = ("--prompt", "a cat", "--base", bases / "lcm", "--base-steps", 2, "--booster", bundle, "--steps", 1)
    call("sample", *options, "--seed", 5, "--out", tmp_path, "--base-backend", "torch")
    expected = boost_pipeline(load_pipeline(str(bases / "lcm")), "a cat", Booster.load(bundle), **COMMANDED)
    with Image.open(tmp_path / "00000.png") as image:
        assert np.abs(np.asarray(image).astype(int) - expected[0]).max() <= 1
        assert '"prompt": "a cat"' in image.text["fmboost"]
    assert "--base" in call_refused("sample", *options[:2], *options[6:], "--out", tmp_path)
    nowhere = call_refused("sample", *options[:2], "--base", tmp_path / "none", *options[6:], "--out", tmp_path)
    assert "expected a diffusers pipeline's folder" in nowhere


COMMANDED = {"base_steps": 2, "steps": 1, "seed": 5}


def test_missing_diffusers_names_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "diffusers", None)
    with warnings.catch_warnings(), pytest.raises(InputError, match=r"pip install 'fmboost_jax\[diffusers\]'"):
        load_pipeline("anywhere")
