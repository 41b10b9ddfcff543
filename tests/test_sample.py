"""`python -m fmboost_jax.sample` on a checkpoint that the training command wrote."""

import json
import os
import re
import resource
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from fmboost_jax.boosting.booster import Booster
from fmboost_jax.boosting.folder import boost_folder, print_report
from fmboost_jax.boosting.latents_file import is_latents_file, read_latents
from fmboost_jax.errors import InputError
from fmboost_jax.export import export
from fmboost_jax.images.png import write_png
from fmboost_jax.images.sixteen_bits import read_sixteen_bits
from fmboost_jax.models.first_stage import LatentSpec
from fmboost_jax.sample import main
from tests.commands import call_refused


@pytest.fixture(scope="module")
def booster(run):
    return Booster.load(run)


@pytest.fixture(scope="module")
def small_photograph(photographs, tmp_path_factory):
    """Named coffee.png, 24×16 pixels."""
    path = tmp_path_factory.mktemp("small") / "coffee.png"
    Image.open(photographs / "coffee.png").crop((20, 20, 44, 36)).save(path)
    return path


def sample(*arguments):
    """The command within this process."""
    main([str(argument) for argument in arguments])


def test_a_folder_with_a_bad_file_among_its_photographs(run, photographs, tmp_path):
    folder = tmp_path / "photographs"
    folder.mkdir()
    Image.open(photographs / "coffee.png").crop((0, 0, 37, 25)).save(folder / "odd.webp", lossless=True)
    (folder / "broken.jpg").write_bytes(b"no photograph")
    options = ("--checkpoint", run, "--input", folder, "--factor", 2, "--steps", 2, "--method", "midpoint", "--seed", 7)
    line = call_refused("sample", *options, "--out", tmp_path / "a")
    assert "1 of 2 inputs were not boosted: broken.jpg: not an image" in line
    with Image.open(tmp_path / "a" / "odd.png") as image:
        assert image.size == (74, 50)
        settings = json.loads(image.text["fmboost"])
    assert settings["steps"] == 2
    assert settings["method"] == "midpoint"
    assert settings["seed"] == 7
    (folder / "broken.jpg").unlink()
    sample(*options, "--out", tmp_path / "b")
    assert (tmp_path / "a" / "odd.png").read_bytes() == (tmp_path / "b" / "odd.png").read_bytes()
    sample(*options[:-1], 8, "--out", tmp_path / "c")
    assert (tmp_path / "a" / "odd.png").read_bytes() != (tmp_path / "c" / "odd.png").read_bytes()


def test_photographs_boosted_together_equal_those_boosted_alone(run, tmp_path, monkeypatch):
    random = np.random.default_rng(0)
    folder = tmp_path / "photographs"
    folder.mkdir()
    sizes = [(24, 16), (16, 24), (24, 16), (16, 24), (24, 16)]
    for number, (height, width) in enumerate(sizes):
        Image.fromarray(random.integers(0, 256, (height, width, 3), np.uint8)).save(folder / f"{number}.png")
    together = []
    upscale = Booster.upscale

    def watched(self, images, *arguments, **options):
        together.append(images.shape)
        return upscale(self, images, *arguments, **options)

    monkeypatch.setattr(Booster, "upscale", watched)
    words = ("--checkpoint", run, "--steps", 1, "--seed", 3)
    sample(*words, "--input", folder, "--batch-size", 2, "--out", tmp_path / "batches")
    assert together == [(2, 24, 16, 3), (2, 16, 24, 3), (1, 24, 16, 3)]
    for number in range(len(sizes)):
        sample(*words, "--input", folder / f"{number}.png", "--out", tmp_path / "alone")
        pictures = [np.asarray(Image.open(tmp_path / name / f"{number}.png"), int) for name in ("batches", "alone")]
        assert np.abs(pictures[0] - pictures[1]).max() <= 1


def test_devices_share_batches_and_heights(run, tmp_path):
    latents = np.random.default_rng(1).normal(size=(3, 8, 16, 3)).astype(np.float32)
    np.savez(tmp_path / "latents.npz", latents)
    words = ("--checkpoint", run, "--input", tmp_path / "latents.npz", "--steps", 1, "--batch-size", 3)
    sample(*words, "--out", tmp_path / "one")
    sample(*words, "--devices", 4, "--spatial", 2, "--out", tmp_path / "four")
    for number in range(3):
        one, four = (np.asarray(Image.open(tmp_path / name / f"{number:05d}.png"), int) for name in ("one", "four"))
        assert np.abs(one - four).max() <= 1
    for options, message in (
        (("--devices", 9), "--devices 9: there are 8 \\(cpu\\); expected 1 to 8"),
        (("--devices", 4, "--spatial", 3), "--spatial 3 does not divide --devices 4"),
    ):
        with pytest.raises(InputError, match=message):
            sample(*words, *options)


def test_comparisons_and_latents_are_written(run, small_photograph, tmp_path, capsys):
    sample("--checkpoint", run, "--input", small_photograph, "--compare", "--out", tmp_path)
    assert "PSNR bilinear" in capsys.readouterr().out
    assert (tmp_path / "coffee_comparison.png").exists()
    latents = np.random.default_rng(0).normal(size=(2, 8, 16, 3)).astype(np.float32)
    np.savez(tmp_path / "latents.npz", latents)
    export(run, tmp_path / "bundle", consistency=0.5)
    booster = Booster.load(tmp_path / "bundle")
    boosted = booster.boost(latents, steps=1, seed=[0, 1])
    corrected, plain = booster.decode_boosted(boosted, latents), booster.decode(boosted)
    assert np.abs(corrected.astype(int) - plain).max() > 8
    for fix, expected in (("consistency", corrected), ("none", plain)):
        words = ("--steps", 1, "--colour-fix", fix, "--out", tmp_path / fix)
        sample("--checkpoint", tmp_path / "bundle", "--input", tmp_path / "latents.npz", *words)
        with Image.open(tmp_path / fix / "00001.png") as image:
            assert np.abs(np.asarray(image, int) - expected[1]).max() <= 1


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"--factor": "4"}, "×2"),
        ({"--steps": "0"}, "steps must be"),
        ({"--checkpoint": "nowhere"}, "no such folder"),
        ({"--input": "nowhere.jpg"}, "nowhere.jpg"),
        ({"--input": "README.md"}, "README.md"),
    ],
)
def test_bad_input_gets_one_line(run, photographs, tmp_path, change, expected):
    options = {"--checkpoint": run, "--input": photographs, "--out": tmp_path, **change}
    assert expected in call_refused("sample", *[word for pair in options.items() for word in pair])


def test_first_velocity_is_the_sources(booster, photographs):
    """After three updates the flow hardly changes x0: the enlarged photograph with two grey levels of noise."""
    photograph = np.asarray(Image.open(photographs / "astronaut.png"))[None, :24, :16]
    boosted = booster.upscale(photograph, steps=1, colour_fix=None)
    assert boosted.shape == (1, 48, 32, 3)
    smaller = boosted.reshape(24, 2, 16, 2, 3).mean((1, 3))
    assert np.abs(smaller - photograph[0]).mean() < 12


def test_each_image_has_its_own_seed_whatever_the_batch(booster):
    latents = np.random.default_rng(0).normal(size=(3, 8, 8, 3)).astype(np.float32)
    together = np.asarray(booster.boost(latents, seed=5))
    alone = np.asarray(booster.boost(latents[2:], seed=7))
    np.testing.assert_allclose(together[2:], alone, atol=1e-4)
    chosen = np.asarray(booster.boost(latents, seed=[9, 9, 7]))
    np.testing.assert_allclose(chosen[2:], alone, atol=1e-4)
    assert np.abs(chosen[0] - together[0]).max() > 1e-3


def test_latents_are_checked_before_they_are_boosted(booster):
    with pytest.raises(InputError, match=r"found \(1, 3, 8, 8\)"):
        booster.boost(np.zeros((1, 3, 8, 8), np.float32))
    with pytest.raises(InputError, match="NaN"):
        booster.boost(np.full((1, 8, 8, 3), np.nan, np.float32))


def test_transparency_is_kept(run, photographs, tmp_path):
    """Opaque pixels are boosted as in other photographs; the alpha channel is resized."""
    photograph = Image.open(photographs / "coffee.png").convert("RGB").crop((0, 0, 24, 24))
    alpha = np.full((24, 24), 255, np.uint8)
    alpha[:, 12:] = 0
    photograph.putalpha(Image.fromarray(alpha))
    photograph.save(tmp_path / "half.png")
    sample("--checkpoint", run, "--input", tmp_path / "half.png", "--out", tmp_path / "out")
    with Image.open(tmp_path / "out" / "half.png") as image:
        assert image.mode == "RGBA"
        found = np.asarray(image)
    assert found.shape == (48, 48, 4)
    assert (found[:, :18, 3] == 255).all()
    assert (found[:, 30:, 3] == 0).all()


def test_a_resumed_folder_writes_only_missing_or_changed_results(run, photographs, tmp_path, capsys):
    folder, out = tmp_path / "photographs", tmp_path / "out"
    folder.mkdir()
    for name in ("coffee", "rocket"):
        Image.open(photographs / f"{name}.png").crop((0, 0, 24, 24)).save(folder / f"{name}.png")
    options = ("--checkpoint", run, "--input", folder, "--out", out, "--resume")
    sample(*options)
    capsys.readouterr()
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    Image.open(photographs / "chelsea.png").crop((0, 0, 24, 24)).save(folder / "rocket.png")
    sample(*options)
    assert "1 of 2 were there already" in capsys.readouterr().out
    after = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    assert [name for name in before if after[name] != before[name]] == ["rocket.png"]
    with pytest.raises(InputError, match="2 output files exist"):
        sample(*options, "--noise-step", 0)
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == after


def test_colour_fixes_keep_the_mean_colour(booster, tmp_path):
    """Without the fix, a flow at noise step 900 changes the mean colour by far more."""
    low = np.zeros((24, 24, 3), np.uint8)
    low[:, 12:] = 80, 0, 200
    Image.fromarray(low).save(tmp_path / "flag.png")
    drifts = []
    for fix in (None, "adain"):
        out = tmp_path / str(fix)
        boost_folder(booster, tmp_path / "flag.png", out, noise_step=900, colour_fix=fix)
        with Image.open(out / "flag.png") as image:
            drifts.append(np.abs(np.asarray(image).mean((0, 1)) - low.mean((0, 1))).max())
    assert drifts[1] < 0.5 * drifts[0]


def test_bad_arguments_are_refused_before_anything_is_written(run, photographs, tmp_path):
    for words, expected in (
        (("--out", "gs://bucket/out"), "object stores"),
        (("--out", photographs / "coffee.png"), "is a file"),
        (("--seed", -1), r"0 to 2\^64"),
        (("--diffusion", "SBDM"), "--diffusion needs --stochastic"),
        (("--stochastic", "heun"), "starts from noise"),
        (("--stochastic", "heun", "--rtol", 1), "--rtol needs an ODE"),
    ):
        with pytest.raises(InputError, match=expected):
            sample("--checkpoint", run, "--input", photographs, "--out", tmp_path / "out", *words)
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_metadata_and_sixteen_bits_are_kept_on_request(run, booster, photographs, tmp_path):
    """In one folder: a deep photograph in tiles, and an 8-bit one of the same size."""
    folder, exif = tmp_path / "photographs", Image.Exif()
    folder.mkdir()
    eight = Image.open(photographs / "coffee.png").convert("RGB").crop((0, 0, 40, 24))
    deep = np.asarray(eight).clip(1).astype(np.uint16) * 257 - np.arange(40, dtype=np.uint16)[:, None] % 2 * 100
    exif[306] = "2026:05:01 10:00:00"
    eight.save(folder / "a.jpg", exif=exif, quality=100)
    write_png(folder / "b.png", deep, exif=exif.tobytes()[6:])
    words = ("--checkpoint", run, "--steps", 1, "--input", folder, "--batch-size", 2, "--tile", 32)
    sample(*words, "--keep-metadata", "--colour-fix", "adain", "--out", tmp_path / "kept")
    sample(*words, "--colour-fix", "adain", "--out", tmp_path / "plain")
    kept = read_sixteen_bits(tmp_path / "kept" / "b.png")
    plain = np.asarray(Image.open(tmp_path / "plain" / "b.png"), int)
    assert np.abs(kept / 257 - plain).max() < 2.5
    assert len(np.unique(kept)) > 1000
    assert read_sixteen_bits(tmp_path / "kept" / "a.png") is None
    for name in "ab":
        assert Image.open(tmp_path / "kept" / f"{name}.png").getexif()[306] == exif[306]
        assert not Image.open(tmp_path / "plain" / f"{name}.png").getexif()
    large = booster.upscale([deep, np.asarray(eight)], steps=1)
    assert [image.dtype for image in large] == [np.uint16, np.uint8]
    for words_, expected in (
        (("--keep-metadata", "--compare"), "a comparison does not support"),
        (("--max-megapixels", 0.0005), r"2 of 2 inputs were not boosted: a.jpg: Image size \(960 pixels\) exceeds"),
        (("--max-megapixels", -1), "more than 0"),
    ):
        with pytest.raises(InputError, match=expected):
            sample(*words, *words_, "--out", tmp_path / "refused")


def test_a_cascade_with_its_intermediates(run, booster, photographs, tmp_path, capsys):
    low = Image.open(photographs / "coffee.png").convert("RGB").crop((0, 0, 16, 24))
    low.save(tmp_path / "small.png")
    options = ("--booster", run, run, "--factor", 4, "--intermediates", "--verbose", "--colour-fix", "none")
    sample(*options, "--input", tmp_path / "small.png", "--out", tmp_path / "photo")
    assert "s compiling" in capsys.readouterr().out
    first = booster.upscale(np.asarray(low)[None], colour_fix=None)
    for name, expected in (("small_stage1", first), ("small", booster.upscale(first, colour_fix=None))):
        with Image.open(tmp_path / "photo" / f"{name}.png") as image:
            assert np.abs(np.asarray(image).astype(int) - expected[0]).max() <= 1
    np.savez(tmp_path / "latents.npz", np.zeros((3, 4, 4, 3), np.float32))
    done = ("--input", tmp_path / "latents.npz", "--batch-size", 2, "--out", tmp_path / "latents")
    sample(*options, *done)
    sizes = {path.name: Image.open(path).size for path in (tmp_path / "latents").iterdir()}
    expected = {f"{i:05d}{stage}.png": (side, side) for i in range(3) for stage, side in (("_stage1", 8), ("", 16))}
    assert sizes == expected


def test_benchmark(run, capsys):
    sample("--checkpoint", run, "--benchmark", 2, "--size", "4x8", "--batch-size", 2)
    assert re.fullmatch(r"boost: \d+\.\d+ s/image\ndecode: \d+\.\d+ s/image\n", capsys.readouterr().out)
    with pytest.raises(InputError, match="HxW"):
        sample("--checkpoint", run, "--benchmark", 2, "--size", "4")


def test_an_image_bomb_is_named(run, tmp_path):
    """A file of a few bytes whose header claims 100,000 × 100,000 pixels."""
    size = struct.pack(">II5B", 100_000, 100_000, 8, 2, 0, 0, 0)
    header = b"IHDR" + size
    content = (
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", 13)
        + header
        + struct.pack(">I", zlib.crc32(header))
        + struct.pack(">I", 9)
        + b"IDAT"
    )
    (tmp_path / "bomb.png").write_bytes(content)
    with pytest.raises(InputError, match=r"bomb\.png: Image size \(10000000000 pixels\) exceeds limit"):
        sample("--checkpoint", run, "--input", tmp_path / "bomb.png", "--out", tmp_path / "out")


def test_no_file_of_the_user_is_overwritten(run, photographs, tmp_path):
    """Output over input, two inputs of one name, results as inputs, several inputs, and other weights."""
    photo = Image.open(photographs / "coffee.png").convert("RGB").crop((0, 0, 24, 16))
    folder = tmp_path / "photographs"
    folder.mkdir()
    photo.save(folder / "a.png")
    photo.transpose(Image.Transpose.ROTATE_90).save(folder / "a.jpg")
    before = (folder / "a.png").read_bytes()
    with pytest.raises(InputError, match="output files exist"):
        sample("--checkpoint", run, "--input", folder / "a.png", "--out", folder)
    for _ in range(2):
        sample("--checkpoint", run, "--steps", 1, "--input", folder, "--out", folder / "boosted")
        sizes = {path.name: Image.open(path).size for path in (folder / "boosted").iterdir()}
        assert sizes == {"a.png.png": (48, 32), "a.jpg.png": (32, 48)}
    assert (folder / "a.png").read_bytes() == before
    with pytest.raises(InputError, match="2 output files exist"):
        sample("--steps", 1, "--input", folder, "--out", folder / "boosted", "--resume")


def test_a_full_disk_leaves_no_partial_file_and_the_run_continues(booster, tmp_path):
    """A limit on the size of files acts as a full disk."""
    folder, out = tmp_path / "photographs", tmp_path / "out"
    folder.mkdir()
    Image.new("RGB", (24, 16), "red").save(folder / "a.png")
    noise = np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8)
    Image.fromarray(noise).save(folder / "b.png")
    expected = boost_folder(booster, folder, tmp_path / "other", steps=1)
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    limit = (tmp_path / "other" / "b.png").stat().st_size - 1
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(InputError, match=r"b\.png cannot be written: File too large"):
            boost_folder(booster, folder, out, steps=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert [path.name for path in out.iterdir()] == ["a.png"]
    report = boost_folder(booster, folder, out, steps=1, resume=True)
    assert (report.present, report.written, expected.written) == (1, 1, 2)
    assert (out / "b.png").read_bytes() == (tmp_path / "other" / "b.png").read_bytes()


def test_images_too_small_to_compare_are_named(booster, tmp_path):
    Image.new("RGB", (3, 9)).save(tmp_path / "dot.png")
    report = boost_folder(booster, tmp_path / "dot.png", tmp_path / "out", comparison=True)
    assert report.problems == ["dot.png: a side below 8 pixels is too small to compare at ×2"]
    with pytest.raises(InputError, match="1 of 1 inputs were not boosted: dot"):
        print_report(report)


def test_a_trajectory_ends_at_the_result(booster, small_photograph, tmp_path):
    boost_folder(booster, small_photograph, tmp_path / "a", steps=2, trajectory=True)
    boost_folder(booster, small_photograph, tmp_path / "b", steps=2, tile=0)
    found = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert found == ["coffee.png", "coffee_t0.png", "coffee_t1.png"]
    last, alone = (np.asarray(Image.open(tmp_path / name / "coffee.png"), int) for name in "ab")
    assert np.abs(last - alone).max() <= 1
    with pytest.raises(InputError, match="one booster"):
        boost_folder([booster, booster], small_photograph, tmp_path / "c", trajectory=True)


def test_files_of_latents(tmp_path):
    import jax.numpy as jnp
    from safetensors.numpy import save_file

    spec = LatentSpec("kl", "", 4, 8, scaling_factor=0.5, shift_factor=1.0)
    latents = np.random.default_rng(0).normal(size=(1, 2, 3, 4)).astype(np.float32)
    np.save(tmp_path / "a.npy", latents)
    np.savez(tmp_path / "b.NPZ", latents)
    (tmp_path / "b.NPZ.npz").rename(tmp_path / "b.NPZ")
    raw = np.ascontiguousarray((latents / 0.5 + 1).transpose(0, 3, 1, 2))
    save_file({"latent_tensor": raw, "latent_format_version_0": np.zeros(1)}, tmp_path / "c.latent")
    for name in ("a.npy", "b.NPZ", "c.latent"):
        assert is_latents_file(str(tmp_path / name))
        np.testing.assert_allclose(read_latents(str(tmp_path / name), spec), latents, atol=1e-6)
    np.savez(tmp_path / "bf.npz", np.asarray(jnp.asarray(latents, jnp.bfloat16)))
    np.testing.assert_allclose(read_latents(str(tmp_path / "bf.npz"), spec), latents, atol=0.02)
    content = (tmp_path / "b.NPZ").read_bytes()
    bad = {
        "complex": latents.astype(complex),
        "text": np.array(["a"]),
        "empty": latents[:0],
        "scalar": np.float32(1),
    }
    for name, array in bad.items():
        np.savez(tmp_path / f"{name}.npz", array)
    (tmp_path / "cut.npz").write_bytes(content[: len(content) // 2])
    (tmp_path / "flipped.npz").write_bytes(content[:80] + bytes(20) + content[100:])
    (tmp_path / "other.npz").write_bytes(b"other")
    os.mkfifo(tmp_path / "pipe.npz")
    for name in (*bad, "cut", "flipped", "missing", "pipe", "other"):
        with pytest.raises(InputError, match=f"latents .*{name}") as caught:
            read_latents(str(tmp_path / f"{name}.npz"), spec)
        assert "allow_pickle" not in str(caught.value)
