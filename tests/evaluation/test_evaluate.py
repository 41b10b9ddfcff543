"""`python -m fmboost_jax.evaluate`: its numbers against other computations, interruptions, shares, bad input."""

import csv
import json

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from flax import nnx
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from fmboost_jax.boosting.booster import Booster
from fmboost_jax.boosting.bundle import BundleConfig, write_bundle
from fmboost_jax.data.sources import FolderPhotos
from fmboost_jax.errors import InputError
from fmboost_jax.evaluate import main
from fmboost_jax.evaluation.degradations import degrade
from fmboost_jax.evaluation.metrics import Metrics
from fmboost_jax.files import atomic_folder
from fmboost_jax.flow.coupling import Coupling
from fmboost_jax.interop.autoencoders import load_first_stage
from fmboost_jax.metrics.features import KINDS, Kind, load_features
from fmboost_jax.metrics.frechet import patches
from fmboost_jax.models.parameters import split
from fmboost_jax.models.unet import UNet, UNetConfig
from tests.commands import call
from tests.random_models import random_model

UNET = UNetConfig(in_channels=6, out_channels=3, model_channels=32, channel_mult=(1, 1), num_res_blocks=1, dim_head=16)
TINY = "frechet-tiny"
SMALL = ("--config.high_res=32", "--config.low_res=16", "--config.steps=1", "--config.batch_size=2")


class TinyFeatures(nnx.Module):
    """Six features: moments of the colours, mixed."""

    def __init__(self):
        self.mix = nnx.Linear(6, 6, rngs=nnx.Rngs(0))

    def __call__(self, images):
        values = images / 255
        return self.mix(jnp.concatenate([values.mean((1, 2)), 4 * values.std((1, 2))], axis=-1))


@pytest.fixture(scope="module", autouse=True)
def tiny_features():
    """Few enough features that scipy's square root is a witness; networks are tested in tests/metrics."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(KINDS, "tiny", Kind(TINY, 6, lambda path: TinyFeatures()))
        yield


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """Eleven crops of real photographs, 32² pixels."""
    import skimage.data

    folder = tmp_path_factory.mktemp("originals")
    for name in ("astronaut", "coffee", "chelsea", "rocket"):
        photograph = getattr(skimage.data, name)()
        for number in range(3):
            Image.fromarray(photograph[60 + 40 * number :][:32, 100:132]).save(folder / f"{name}{number}.png")
    (folder / "rocket2.png").unlink()
    return folder


@pytest.fixture(scope="module")
def noisy(originals, tmp_path_factory):
    """The same with noise, as JPEG-free WebP files: names without their ending are what pairs."""
    folder = tmp_path_factory.mktemp("noisy")
    generator = np.random.default_rng(0)
    for path in sorted(originals.iterdir()):
        image = np.asarray(Image.open(path)) + generator.normal(0, 12, (32, 32, 3))
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(folder / f"{path.stem}.webp", lossless=True)
    return folder


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    stage = load_first_stage("identity")
    config = BundleConfig(UNET, Coupling(noise_step=300), "linear", 2, 16, 32, stage.spec, 0)
    out = tmp_path_factory.mktemp("bundles") / "small"
    with atomic_folder(out) as folder:
        write_bundle(folder, split(random_model(UNet, UNET))[1], config)
    return out


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("statistics")


def evaluate(out, *arguments, cache=None):
    """The command within this process; returns what results.json holds."""
    main([str(word) for word in (*arguments, "--out", out, *(("--cache", cache) if cache else ()))])
    return json.loads((out / "results.json").read_text())


def values(results):
    return {name: entry["value"] for name, entry in results["metrics"].items()}


def read(folder):
    return {path.stem: np.asarray(Image.open(path)) for path in sorted(folder.iterdir())}


def distance(images, reference, cut=lambda name, image: image[None]):
    """The textbook formula on all features at once."""
    network, sides = load_features("tiny"), []
    for pictures in (images, reference):
        sides.append(np.asarray(network(np.concatenate([cut(name, image) for name, image in pictures.items()]))))
    difference = sides[0].mean(axis=0) - sides[1].mean(axis=0)
    first, second = (np.cov(side, rowvar=False) for side in sides)
    return difference @ difference + np.trace(first + second - 2 * scipy.linalg.sqrtm(first @ second).real)


def test_pairs_of_folders(originals, noisy, cache, tmp_path, capsys):
    metrics = "psnr,ssim,ssimulacra2,fid,patch-fid"
    words = ("--images", noisy, "--reference", originals, "--metrics", metrics, "--features", "tiny")
    words = (*words, "--config.patches=((16,2),)", "--config.batch_size=4")
    results = evaluate(tmp_path / "out", *words, cache=cache)
    found, images, reference = values(results), read(noisy), read(originals)

    expected = [peak_signal_noise_ratio(reference[name], images[name]) for name in images]
    assert found["psnr"] == pytest.approx(np.mean(expected), rel=1e-5)
    assert results["metrics"]["psnr"]["standard_error"] == pytest.approx(np.std(expected, ddof=1) / 11**0.5, rel=1e-4)
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
    expected = [structural_similarity(reference[n], images[n], channel_axis=-1, **options) for n in images]
    assert found["ssim"] == pytest.approx(np.mean(expected), abs=1e-5)
    assert found[TINY] == pytest.approx(distance(images, reference), rel=1e-4)
    cut = distance(images, reference, lambda name, image: patches(image, name, size=16, count=2))
    assert found[f"patch-16-{TINY}"] == pytest.approx(cut, rel=1e-4)
    assert not any("fid" in name for name in found)
    assert results["metrics"][f"patch-16-{TINY}"]["images"] == 22
    assert 0 < found["ssimulacra2"] < 100
    assert (results["images"], results["skipped"], results["seconds_an_image"]) == (11, [], None)
    assert results["warnings"] == []

    out, captured = tmp_path / "out", capsys.readouterr()
    assert "ssimulacra2" in captured.out
    with open(out / "images.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == sorted(images)
    assert np.mean([float(row["psnr"]) for row in rows]) == pytest.approx(found["psnr"])
    with open(out / "results.csv", newline="") as file:
        assert {row["metric"]: float(row["value"]) for row in csv.DictReader(file)} == pytest.approx(found)
    assert sorted(path.name for path in out.iterdir()) == ["images.csv", "results.csv", "results.json"]
    # Once more: nothing is measured, the same table; with other settings: refused.
    assert evaluate(out, *words, cache=cache) == results
    with pytest.raises(InputError, match=r"other settings.*seed: 0 → 1.*choose another output folder"):
        evaluate(out, *words, "--config.seed=1")


def test_equal_and_constant_images(originals, cache, tmp_path):
    words = ("--metrics", "psnr,ssim,ssimulacra2,fid", "--features", "tiny", "--config.batch_size=4")
    equal = evaluate(tmp_path / "equal", "--images", originals, "--reference", originals, *words, cache=cache)
    assert float(values(equal)["psnr"]) > 140  # nothing but the rounding of float32
    assert values(equal)["ssim"] == pytest.approx(1, abs=1e-5)
    assert values(equal)["ssimulacra2"] == 100
    assert 0 <= values(equal)[TINY] < 1e-6
    (tmp_path / "grey").mkdir()
    for number in range(3):
        Image.new("RGB", (32, 32), "grey").save(tmp_path / "grey" / f"{number}.png")
    pair = ("--images", tmp_path / "grey", "--reference", tmp_path / "grey")
    constant = evaluate(tmp_path / "constant", *pair, *words, cache=cache)
    assert values(constant) == {
        "psnr": "inf",
        "ssim": pytest.approx(1),
        "ssimulacra2": 100,
        TINY: pytest.approx(0, abs=1e-6),
    }


@pytest.mark.parametrize("fix", [None, "adain"])
def test_photographs_are_downsampled_boosted_and_compared(originals, bundle, tmp_path, fix):
    words = ("--config", "configs/protocols/sr.py:jpeg", "--images", originals, *SMALL, "--metrics", "psnr")
    results = evaluate(tmp_path / "out", *words, "--booster", bundle, f"--config.colour_fix={fix or 'none'}")
    booster, expected = Booster.load(bundle), []
    for number, (name, image) in enumerate(read(originals).items()):
        small = degrade(image, name, size=16, kind="jpeg", resize="bicubic", seed=0)
        boosted = booster.upscale(small[None], steps=1, seed=number, tile=0, colour_fix=fix)[0]
        expected.append(peak_signal_noise_ratio(image, boosted))
    with open(tmp_path / "out" / "images.csv", newline="") as file:
        assert [float(row["psnr"]) for row in csv.DictReader(file)] == pytest.approx(expected, rel=1e-4)
    assert results["seconds_an_image"] > 0
    assert results["protocol"] == "sr:jpeg"
    # What a booster has to beat: a filter.
    plain = evaluate(tmp_path / "plain", *words, "--resize", "bicubic")
    assert values(plain)["psnr"] > values(results)["psnr"] + 3


class Interrupted(Exception):
    """Acts as an interruption between two batches."""


def test_interrupted_and_shared_work_gives_the_same_numbers(originals, bundle, cache, tmp_path, monkeypatch, capsys):
    metrics = ("--metrics", "psnr,fid", "--features", "tiny", "--config.degradation=blur_noise")
    words = ("--images", originals, "--booster", bundle, *SMALL, *metrics)
    whole = evaluate(tmp_path / "whole", *words, cache=cache)

    measured, rows = [], Metrics.rows
    left = 3

    def counted(self, names, *others):
        if len(measured) == left:
            raise Interrupted
        measured.append(names)
        return rows(self, names, *others)

    monkeypatch.setattr(Metrics, "rows", counted)
    with pytest.raises(Interrupted):
        evaluate(tmp_path / "cut", *words, cache=cache)
    assert not (tmp_path / "cut" / "results.json").exists()
    (tmp_path / "cut" / "partial" / ".images-00003.npz.1.partial").write_bytes(b"cut short")
    with pytest.raises(InputError, match=r"other settings.*protocol\.metrics"):
        evaluate(tmp_path / "cut", *words, "--metrics", "psnr", cache=cache)
    left = 99
    resumed = evaluate(tmp_path / "cut", *words, cache=cache)
    assert [name for names in measured for name in names] == [row.stem for row in sorted(originals.iterdir())]
    assert (resumed["metrics"], resumed["settings"]) == (whole["metrics"], whole["settings"])

    share = ("--process-count", 2, "--cache", tmp_path / "other", "--process-index")
    main([str(word) for word in (*words, *share, 1, "--out", tmp_path / "shared")])
    assert "batches of other processes are not finished" in capsys.readouterr().out
    shared = evaluate(tmp_path / "shared", *words, *share, 0)
    assert shared["metrics"] == whole["metrics"]


def test_reference_statistics_are_kept_while_the_images_are_the_same(originals, noisy, tmp_path, monkeypatch):
    computed, features = [], Metrics.features
    monkeypatch.setattr(Metrics, "features", lambda *a: computed.append(a[1]) or features(*a))
    words = ("--images", noisy, "--metrics", "fid", "--features", "tiny", "--config.batch_size=11")

    def batches(out, reference):
        computed.clear()
        evaluate(tmp_path / out, *words, "--reference", reference, cache=tmp_path / "statistics")
        return len(computed)

    assert batches("first", originals) == 2
    assert batches("second", originals) == 1
    (kept,) = (tmp_path / "statistics").iterdir()
    assert kept.name.startswith(TINY)
    other = tmp_path / "other"
    other.mkdir()
    for path in originals.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    assert batches("third", other) == 1
    Image.open(noisy / "rocket0.webp").save(other / "rocket0.png")
    assert batches("fourth", other) == 2


def test_unreadable_images_are_named_and_skipped(originals, noisy, tmp_path, capsys):
    folder = tmp_path / "images"
    folder.mkdir()
    for path in noisy.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "coffee1.webp").write_bytes(b"no image")
    results = evaluate(tmp_path / "out", "--images", folder, "--reference", originals, "--metrics", "psnr")
    assert results["images"] == 10
    assert results["skipped"] == [["coffee1", "not an image, or one of an unknown kind"]]
    assert "coffee1: not an image" in capsys.readouterr().err
    for path in folder.iterdir():
        path.write_bytes(b"")
    with pytest.raises(InputError, match="none of the 11 images could be used: astronaut0: not an image"):
        evaluate(tmp_path / "none", "--images", folder, "--reference", originals, "--metrics", "psnr")


def test_a_tfds_dataset_is_evaluated(originals, tmp_path, monkeypatch):
    """TFDS itself is tested in tests/data; its images are named by numbers, without a suffix."""
    photos = FolderPhotos(originals)
    photos.names = [f"made/1.0.0/test/{number:08d}" for number in range(len(photos.names))]
    monkeypatch.setattr("fmboost_jax.evaluate.TFDSPhotos", lambda name: {"made:test": photos}[name])
    words = (*SMALL, "--metrics", "psnr", "--resize", "bilinear")
    found = evaluate(tmp_path / "dataset", "--tfds", "made:test", *words)
    assert values(found) == values(evaluate(tmp_path / "folder", "--images", originals, *words))


class Base:
    """Acts as a base model, which tests/generation tests; its latents depend on the seed alone."""

    name = backend = "seeded"

    def latents(self, prompts, *, steps=None, seed=0, guidance=None, batch_size=None, height=None, width=None):
        assert (steps, guidance) == (2, 7.5)
        drawn = [np.random.default_rng(seed + i).uniform(-1, 1, (height, width, 3)) for i in range(len(prompts))]
        return np.asarray(drawn, np.float32)


def test_images_of_prompts_are_evaluated(bundle, tmp_path, monkeypatch):
    """A base model's latents are boosted and get a CLIP score; fewer images than the protocol's give a message."""
    captions = {"a": "a cat", "b": "a dog", "c": "a house"}
    (tmp_path / "captions.json").write_text(json.dumps(captions))
    (tmp_path / "images").mkdir()
    for name in captions:
        Image.new("RGB", (32, 32)).save(tmp_path / "images" / f"{name}.png")
    seen = {}

    def score(images, texts):
        seen.update(zip(texts, images, strict=True))
        return [float(len(text)) for text in texts]

    base = Base()
    monkeypatch.setattr("fmboost_jax.metrics.table.CLIPScore", lambda path: score)
    monkeypatch.setattr("fmboost_jax.generation.base.load_base", lambda *arguments, **options: base)
    words = ("--config", "configs/protocols/coco5k.py", "--images", tmp_path / "images", "--metrics", "clip", *SMALL)
    words = (*words, "--config.base_steps=2", "--base", "base")
    captioned = ("--captions", tmp_path / "captions.json")
    results = evaluate(tmp_path / "out", *words, *captioned, "--booster", bundle)
    assert values(results) == {"clip": pytest.approx((5 + 5 + 7) / 3)}
    assert results["warnings"] == ["the protocol has 5000 images, 3 were measured: not comparable with other sets"]
    booster = Booster.load(bundle)
    latent = base.latents([""], steps=2, seed=2, guidance=7.5, height=16, width=16)
    expected = booster.decode(booster.boost(latent, steps=1, seed=2))[0]
    assert np.abs(seen["a house"].astype(int) - expected).max() <= 1
    with pytest.raises(InputError, match="needs a diffusers pipeline"):
        evaluate(tmp_path / "none", *words, *captioned)
    with pytest.raises(InputError, match="need captions: a JSON file"):
        evaluate(tmp_path / "none", *words, "--booster", bundle)


def test_bad_input_gets_one_line(originals, noisy, bundle, tmp_path):
    images = ("--images", originals)
    for words, message in (
        (("--metrics", "psnr"), "these metrics need a reference"),
        (("--metrics", "pnsr", "--reference", noisy), "metrics 'pnsr' is unknown; expected one of psnr, ssim"),
        (("--metrics", "psnr", "--booster", bundle), "the booster enlarges ×2: low_res 0"),
        (
            ("--metrics", "psnr", "--booster", bundle, "--config.low_res=8", "--config.high_res=32"),
            "low_res 8 gives 16",
        ),
        (("--metrics", "psnr", "--resize", "bicubic"), "set both"),
        (("--metrics", "clip", "--reference", noisy), "need captions"),
        (("--metrics", "psnr", "--reference", tmp_path), "holds no photographs"),
        (("--metrics", "patch-fid", "--features", "tiny", "--reference", noisy), "smaller than a patch"),
        (("--process-index", 2), "process index 2 is outside"),
        (("--metrics", "fid", "--weights", "none.pth", "--reference", noisy), r"weights none\.pth: no such file"),
    ):
        with pytest.raises(InputError, match=message) as error:
            evaluate(tmp_path / "out", *images, *words, cache=tmp_path / "statistics")
        assert "\n" not in str(error.value)


def test_the_command_writes_results(originals, noisy, tmp_path, capsys):
    words = ("--images", noisy, "--reference", originals, "--metrics", "psnr", "--out", tmp_path)
    call("evaluate", *words)
    printed = capsys.readouterr().out
    assert "psnr" in printed
    assert "results in" in printed


def test_given_pairs_of_small_and_large_images(originals, tmp_path):
    low = tmp_path / "low"
    low.mkdir()
    for path in sorted(originals.iterdir()):
        Image.open(path).resize((16, 16), Image.Resampling.BOX).save(low / path.name)
    words = ("--images", originals, "--low-res", low, "--resize", "nearest", "--metrics", "psnr", *SMALL)
    results = evaluate(tmp_path / "out", *words)
    expected = []
    for path in sorted(originals.iterdir()):
        image = np.asarray(Image.open(low / path.name).resize((32, 32), Image.Resampling.NEAREST))
        expected.append(peak_signal_noise_ratio(np.asarray(Image.open(path)), image))
    assert values(results)["psnr"] == pytest.approx(np.mean(expected), rel=1e-5)
    (low / "rocket0.png").unlink()
    with pytest.raises(InputError, match="psnr need pairs with equal names"):
        evaluate(tmp_path / "other", *words)
