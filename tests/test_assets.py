"""The packaged weights: sizes, half precision, model cards, and boosts of photographs that they were not trained on."""

import pathlib
import warnings

import jax.numpy as jnp
import numpy as np
import pytest
import skimage.data
from PIL import Image
from safetensors.numpy import load_file, save_file

from fmboost_jax import sample
from fmboost_jax.assets import DEFAULT_BOOSTER, NAMES, packaged_folder
from fmboost_jax.boosting.booster import Booster
from fmboost_jax.images.png import read_settings
from fmboost_jax.images.resize import upsample
from fmboost_jax.images.value_range import to_float, to_uint8
from fmboost_jax.interop import load_first_stage, state_dict
from fmboost_jax.metrics.comparison import compare
from fmboost_jax.metrics.images import gradient_energy, psnr
from fmboost_jax.models.autoencoder_tiny import AutoencoderTiny, AutoencoderTinyConfig
from tests.commands import command
from tests.conftest import TAEF2
from tests.random_models import random_model

LIMITS = {
    "demo-autoencoder": 4e6,
    "photo-autoencoder": 6e6,
    "photo-x2": 13e6,
    "photo-x4": 13e6,
    "photo-x4-looks": 13e6,
    "flux2-x2": 13e6,
}


@pytest.fixture(scope="module")
def photograph():
    """A part of "coffee", which is not among the photographs that the weights were trained on."""
    return skimage.data.coffee()[140:268, 200:328]


@pytest.mark.parametrize("name", NAMES)
def test_packaged_weights_are_small_and_have_cards(name):
    folder = pathlib.Path(packaged_folder(name))
    (weights,) = folder.glob("*.safetensors")
    assert weights.stat().st_size < LIMITS[name]
    assert {tensor.dtype for tensor in load_file(weights).values()} == {np.dtype(np.float16)}
    card = (folder / "README.md").read_text()
    own = ("LGPL", "2 CPU cores") if name == "demo-autoencoder" else ("Unsplash License", "one H200")
    for word in ("CC BY-SA 4.0", "CC0", *own, "steps", "seed", "PSNR", "Limits"):
        assert word in card, word


@pytest.mark.parametrize(("name", "limit"), [("demo-autoencoder", 30), ("photo-autoencoder", 33)])
def test_the_autoencoders_keep_a_photograph(name, limit, photograph):
    stage = load_first_stage("tiny", name)
    image = jnp.asarray(to_float(photograph[None]))
    latent = stage.encode(image)
    assert latent.shape == (1, 16, 16, stage.channels)
    assert 0.5 < float(np.std(latent)) < 1.6
    assert float(psnr(stage.decode(latent), image)[0]) > limit


@pytest.mark.parametrize("factor", [2, 4])
def test_boosters_are_closer_and_sharper_than_their_baselines(photograph, factor):
    """They are closer to the original than enlarged latents, and sharper than the small image after a round trip."""
    booster = Booster.load(f"photo-x{factor}")
    stage, truth = booster.first_stage, to_float(photograph[None])
    pictures, _ = compare(booster.upscale, factor, photograph)
    boosted, small = to_float(pictures["boosted"][None]), jnp.asarray(to_float(pictures["low-res"][None]))
    in_latents = stage.decode(upsample(stage.encode(small), 16, "bilinear"))
    in_pixels = stage.decode(stage.encode(upsample(small, 128, "bilinear")))
    assert psnr(boosted, truth)[0] > psnr(to_float(to_uint8(np.asarray(in_latents))), truth)[0]
    assert gradient_energy(boosted)[0] > gradient_energy(np.asarray(in_pixels))[0]


@pytest.mark.parametrize("factor", [2, 4])
def test_photo_boosters_are_closer_than_bicubic(photograph, factor):
    """In one step and consistent with the small photograph, the defaults."""
    booster = Booster.load(f"photo-x{factor}")
    assert booster.steps == 1
    small = Image.fromarray(photograph).reduce(factor)
    boosted = booster.upscale(np.asarray(small)[None])
    bicubic = np.asarray(small.resize(photograph.shape[1::-1], Image.Resampling.BICUBIC))[None]
    truth = to_float(photograph[None])
    assert psnr(to_float(boosted), truth)[0] > psnr(to_float(bicubic), truth)[0] + 0.3


def test_the_booster_for_looks_is_sharper_than_the_accurate_one():
    """And not far from the original: not below bilinear enlargement. On fur; "coffee" has little texture."""
    photograph = skimage.data.chelsea()[20:276, 40:296]
    small = np.asarray(Image.fromarray(photograph).reduce(4))[None]
    accurate, looks = (to_float(Booster.load(name).upscale(small)) for name in ("photo-x4", "photo-x4-looks"))
    truth, bilinear = to_float(photograph[None]), upsample(jnp.asarray(to_float(small)), 256, "bilinear")
    assert gradient_energy(looks)[0] > 1.05 * gradient_energy(accurate)[0]
    assert gradient_energy(looks)[0] < gradient_energy(truth)[0]
    assert psnr(looks, truth)[0] > psnr(bilinear, truth)[0]


@pytest.mark.parametrize("factor", [2, 4])
def test_photo_boosters_know_their_latents(photograph, factor):
    """Latents of another scale are noticed by the bundle's statistics, those of its autoencoder are not."""
    booster = Booster.load(f"photo-x{factor}")
    small = booster.first_stage.encode(jnp.asarray(to_float(photograph[None, :64, :64])))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        booster.boost(small)
    with pytest.warns(UserWarning, match="standard deviation is"):
        booster.boost(booster.first_stage.spec.scaling_factor * small)


def test_the_booster_of_flux2_knows_its_latents(tmp_path):
    """FLUX.2's normalised latents pass; those with the norm undone, as pipelines hand them out, are noticed."""
    like_taef2 = random_model(AutoencoderTiny, AutoencoderTinyConfig(latent_channels=32, pool=True))
    save_file(state_dict(like_taef2, "diffusers"), tmp_path / "taef2.safetensors")
    booster = Booster.load("flux2-x2", first_stage=str(tmp_path / "taef2.safetensors"))
    assert booster.first_stage.spec.inversion_steps == 1
    mean, deviation = (np.array(getattr(booster.statistics, name), np.float32) for name in ("mean", "deviation"))
    latents = mean + deviation * np.random.default_rng(0).standard_normal((1, 8, 8, 32), np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        booster.boost(latents)
    with pytest.warns(UserWarning, match="standard deviation is"):
        booster.boost(1.77 * latents)


def test_flux2_without_its_autoencoder_is_one_line_at_once(photograph, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nothing answers there
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    Image.fromarray(photograph).save(tmp_path / "photo.png")
    done = command("sample", "--booster", "flux2-x2", "--input", tmp_path / "photo.png", status=2)
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: autoencoder madebyollin/taef2: no such folder, and the download from the hub failed")


def test_a_small_latent_of_flux2_becomes_closer_than_by_bicubic_enlargement():
    if not TAEF2.exists():
        pytest.skip("the real weights are not here; FMBOOST_TAEF2 names their folder")
    booster = Booster.load("flux2-x2", first_stage=str(TAEF2))
    photograph = skimage.data.astronaut()[128:384, 256:]
    small = np.asarray(Image.fromarray(photograph).reduce(2))[None]
    latent = booster.first_stage.plain.encode(jnp.asarray(to_float(small)))
    (decoded,) = booster.decode(latent)
    bicubic = np.asarray(Image.fromarray(decoded).resize(photograph.shape[1::-1], Image.Resampling.BICUBIC))[None]
    boosted = booster.decode_boosted(booster.boost(latent), latent)
    truth = to_float(photograph[None])
    assert psnr(to_float(boosted), truth)[0] > psnr(to_float(bicubic), truth)[0] + 0.2


def test_sample_needs_only_a_photograph(photograph, tmp_path, monkeypatch):
    """In an empty folder and with --input alone, the default booster writes an image of twice the size."""
    monkeypatch.chdir(tmp_path)
    Image.fromarray(photograph[:64, :64]).save("photo.png")
    sample.main(["--input", "photo.png"])
    (picture,) = (tmp_path / "boosted").glob("*.png")
    assert Image.open(picture).size == (128, 128)
    assert read_settings(str(picture))["checkpoint"] == DEFAULT_BOOSTER


def test_a_folder_of_the_same_name_has_precedence(tmp_path, monkeypatch):
    from fmboost_jax.interop.hub import local_folder

    assert local_folder("photo-x2") == packaged_folder("photo-x2")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photo-x2").mkdir()
    assert local_folder("photo-x2") == "photo-x2"
