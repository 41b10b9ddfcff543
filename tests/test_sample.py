"""`python -m fmboost_jax.sample` as a user types it, on a checkpoint that the training command wrote."""

import json

import numpy as np
import pytest
from PIL import Image

from fmboost_jax.booster import Booster
from fmboost_jax.errors import InputError
from tests.commands import command, refused, train_words


@pytest.fixture(scope="module")
def run(pairs, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    command("train", *train_words(pairs, workdir, "--config.train.steps=3"))
    return workdir


@pytest.fixture(scope="module")
def booster(run):
    return Booster.load(run)


def test_a_folder_with_a_bad_file_among_its_photographs(run, photographs, tmp_path):
    folder = tmp_path / "photographs"
    folder.mkdir()
    Image.open(photographs / "coffee.png").crop((0, 0, 37, 25)).save(folder / "odd.webp", lossless=True)
    (folder / "broken.jpg").write_bytes(b"no photograph")
    options = ("--checkpoint", run, "--input", folder, "--factor", 2, "--steps", 2, "--method", "midpoint", "--seed", 7)
    done = command("sample", *options, "--out", tmp_path / "a")
    assert "1 of 2 skipped" in done.stderr
    assert "broken.jpg" in done.stderr
    with Image.open(tmp_path / "a" / "odd.png") as image:
        assert image.size == (74, 50)
        settings = json.loads(image.text["fmboost"])
    assert settings["steps"] == 2
    assert settings["method"] == "midpoint"
    assert settings["seed"] == 7
    command("sample", *options, "--out", tmp_path / "b")
    assert (tmp_path / "a" / "odd.png").read_bytes() == (tmp_path / "b" / "odd.png").read_bytes()
    command("sample", *options[:-1], 8, "--out", tmp_path / "c")
    assert (tmp_path / "a" / "odd.png").read_bytes() != (tmp_path / "c" / "odd.png").read_bytes()


def test_compare_and_latents(run, photographs, tmp_path):
    done = command("sample", "--checkpoint", run, "--input", photographs / "rocket.png", "--compare", "--out", tmp_path)
    assert "PSNR bilinear" in done.stdout
    assert (tmp_path / "rocket_comparison.png").exists()
    latents = np.random.default_rng(0).normal(size=(2, 8, 16, 3)).astype(np.float32)
    np.savez(tmp_path / "latents.npz", latents)
    command("sample", "--checkpoint", run, "--input", tmp_path / "latents.npz", "--out", tmp_path / "latents")
    with Image.open(tmp_path / "latents" / "00001.png") as image:
        assert image.size == (32, 16)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"--factor": "4"}, "×2"),
        ({"--steps": "0"}, "--steps"),
        ({"--checkpoint": "nowhere"}, "no such folder"),
        ({"--input": "nowhere.jpg"}, "nowhere.jpg"),
        ({"--input": "README.md"}, "README.md"),
    ],
)
def test_bad_input_gets_one_line(run, photographs, tmp_path, change, expected):
    options = {"--checkpoint": run, "--input": photographs, "--out": tmp_path, **change}
    assert expected in refused("sample", *[word for pair in options.items() for word in pair])


def test_first_velocity_is_the_sources(booster, photographs):
    """Hardly trained, the flow leaves x0 almost as it was: the photograph, enlarged, with two grey levels of noise."""
    photograph = np.asarray(Image.open(photographs / "astronaut.png"))[None, :64, :48]
    boosted = booster.upscale(photograph, steps=1)
    assert boosted.shape == (1, 128, 96, 3)
    smaller = boosted.reshape(64, 2, 48, 2, 3).mean((1, 3))
    assert np.abs(smaller - photograph[0]).mean() < 12


def test_each_image_has_its_own_seed_whatever_the_batch(booster):
    latents = np.random.default_rng(0).normal(size=(3, 8, 8, 3)).astype(np.float32)
    together = np.asarray(booster.boost(latents, seed=5))
    alone = np.asarray(booster.boost(latents[2:], seed=7))
    np.testing.assert_allclose(together[2:], alone, atol=1e-4)
    chosen = np.asarray(booster.boost(latents, seed=[9, 9, 7]))
    np.testing.assert_allclose(chosen[2:], alone, atol=1e-4)
    assert np.abs(chosen[0] - together[0]).max() > 1e-3


def test_latents_are_checked_at_the_door(booster):
    with pytest.raises(InputError, match=r"found \(1, 3, 8, 8\)"):
        booster.boost(np.zeros((1, 3, 8, 8), np.float32))
    with pytest.raises(InputError, match="NaN"):
        booster.boost(np.full((1, 8, 8, 3), np.nan, np.float32))
