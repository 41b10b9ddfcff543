"""Photographs to latent pairs, from the command line to the bytes: interruptions, several processes, damage."""

import dataclasses
import os
import pathlib
import random
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fmboost_jax.data import shards as plan
from fmboost_jax.data.dataset import DataConfig, DatasetInfo, Recipe
from fmboost_jax.data.originals import original_images
from fmboost_jax.data.pairs import make_encode
from fmboost_jax.data.pipeline import spread_records
from fmboost_jax.data.records import PairSource
from fmboost_jax.errors import InputError
from fmboost_jax.images.photos import random_square
from fmboost_jax.images.resize import shrink, upsample
from fmboost_jax.images.value_range import to_uint8
from fmboost_jax.interop.autoencoders import load_first_stage
from fmboost_jax.models.first_stage import Identity
from fmboost_jax.precompute import main

CONFIG = """
from ml_collections import ConfigDict


def get_config():
    data = {"high_res": 32, "low_res": 16, "upsampling": "psu", "dtype": "float16", "crops": 3, "num_threads": 2}
    data["images"] = False
    return ConfigDict({"seed": 5, "first_stage": {"kind": "identity", "path": ""}, "data": data})
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "small.py"
    path.write_text(CONFIG)
    return str(path)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Nine photographs of several sizes, two of which are of no use."""
    folder = tmp_path_factory.mktemp("photos")
    values = np.random.default_rng(0)
    for number in range(7):
        size = (40 + 7 * number, 60 - 3 * number, 3)
        Image.fromarray(values.integers(0, 256, size, np.uint8)).save(folder / f"{number}.png")
    (folder / "3b.jpg").write_bytes((folder / "3.png").read_bytes()[:500])
    Image.new("RGB", (31, 100)).save(folder / "5b.jpg")
    return folder


def precompute(config, photos, out, *words):
    main(["--config", config, "--images", str(photos), "--out", str(out), "--records-per-shard", "6", *words])
    return out


def content(folder: pathlib.Path) -> dict[str, bytes]:
    """Every file in a folder, hidden ones too."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory, config, photos):
    """What an uninterrupted run writes."""
    return content(precompute(config, photos, tmp_path_factory.mktemp("whole")))


def test_pairs_are_the_crops_and_their_downsampled_copies(config, photos, tmp_path, capsys):
    info = DatasetInfo.read(precompute(config, photos, tmp_path / "out"))
    assert (info.records, info.photos, info.skipped) == (21, 7, 2)
    names = [f"{number}.png" for number in range(7)]
    source = PairSource(info)
    for number, pair in enumerate(source[number] for number in range(21)):
        name, crop = names[number // 3], number % 3
        pixels = np.asarray(Image.open(photos / name))
        left, top, right, bottom = random_square(*pixels.shape[1::-1], 32, 1.0, f"5/{crop}/{name}").box
        high = pixels[top:bottom, left:right] / 127.5 - 1
        np.testing.assert_allclose(pair["high"], high, atol=1e-3)
        as_torch = torch.from_numpy(high).permute(2, 0, 1)[None]
        small = torch.nn.functional.interpolate(as_torch, size=16, mode="area")
        low = torch.nn.functional.interpolate(small, size=32, mode="bilinear", align_corners=False)
        np.testing.assert_allclose(pair["low"], low[0].permute(1, 2, 0), atol=1e-3)
    printed = capsys.readouterr().out
    assert "21 pairs of 7 photographs" in printed
    assert "skipped 2:" in printed
    assert "3b.jpg: " in printed
    assert "5b.jpg: 31×100 pixels, smaller than the crop of 32×32" in printed


def test_the_photographs_behind_the_pairs(config, photos, tmp_path):
    info = DatasetInfo.read(precompute(config, photos, tmp_path / "out", "--config.data.images=True"))
    records = np.array([20, 0, 4])
    images = original_images(info, records, str(photos))
    source = PairSource(info)
    np.testing.assert_array_equal(images, np.stack([source[record]["image"] for record in records]))
    expected = to_uint8(np.stack([source[record]["high"] for record in records]))
    np.testing.assert_array_equal(images, expected)
    with pytest.raises(InputError, match=r"not those that dataset .* was made of"):
        original_images(info, records, str(tmp_path / "out"))


def compiled_shrink(image, size):
    """As one program: compiling each of its operations alone takes longer."""
    return np.asarray(jax.jit(shrink, static_argnums=1)(image, size))


@settings(max_examples=40, deadline=None)
@given(size=st.integers(1, 24), factor=st.integers(1, 6), seed=st.integers(0, 99))
def test_shrinking_by_a_whole_factor_takes_means_of_blocks(size, factor, seed):
    image = np.random.default_rng(seed).normal(size=(2, size * factor, size * factor, 3)).astype(np.float32)
    blocks = image.reshape(2, size, factor, size, factor, 3).mean(axis=(2, 4))
    np.testing.assert_allclose(compiled_shrink(image, size), blocks, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(before=st.integers(1, 40), after=st.integers(1, 40))
def test_shrinking_keeps_the_mean_and_reads_no_farther_than_a_pixel_covers(before, after):
    after = min(before, after)
    image = np.random.default_rng(0).normal(size=(1, before, before, 1)).astype(np.float32)
    np.testing.assert_allclose(compiled_shrink(image, after).mean(), image.mean(), atol=1e-5)
    ramp = np.broadcast_to(np.arange(before, dtype=np.float32)[:, None, None], (1, before, before, 1))
    centres = (np.arange(after) + 0.5) * before / after - 0.5
    found = compiled_shrink(ramp, after)[0, :, 0, 0]
    np.testing.assert_allclose(found, centres, atol=0.5 * (before % after > 0) + 1e-4)


class Drifting(Identity):
    """A round trip adds 1, so that what made one more is 1 away."""

    def encode(self, image):
        return image + 1, None


@pytest.mark.parametrize("upsampling", ["psu", "psu_bicubic"])
@pytest.mark.parametrize(("source", "trips"), [("pixels", (0, 0, 0)), ("latents", (1, 1, 1)), ("mixed", (0, 1, 0))])
def test_low_res_source_says_which_small_images_make_a_round_trip(source, trips, upsampling):
    stage = dataclasses.replace(load_first_stage("identity"), model=Drifting())
    recipe = Recipe.of(DataConfig(high_res=16, low_res=8, low_res_source=source, upsampling=upsampling), stage, seed=0)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)
    lows, highs = make_encode(stage, recipe)(pixels, np.arange(3))
    high = pixels / 127.5 - 1
    np.testing.assert_allclose(highs, high + 1, atol=1e-5)
    pixel_filter = {"psu": "bilinear", "psu_bicubic": "bicubic"}[upsampling]
    plain = upsample(shrink(jnp.asarray(high), 8), 16, pixel_filter) + 1
    np.testing.assert_allclose(lows, plain + np.array(trips)[:, None, None, None], atol=1e-5)


class Weak(Identity):
    """Encodes 0.75x, where the inverse of its decoder is x."""

    def encode(self, image):
        return 0.75 * image, None


def test_large_latents_are_inverted_and_small_ones_are_a_base_models():
    stage = load_first_stage("identity", inversion_steps=1)
    stage = dataclasses.replace(stage, model=Weak())
    recipe = Recipe.of(DataConfig(high_res=16, low_res=8, low_res_source="latents"), stage, seed=0)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)
    lows, highs = make_encode(stage, recipe)(pixels, np.arange(3))
    high = pixels / 127.5 - 1
    once = 0.75 * (2 - 0.75)  # 0.75 + 0.75 − 0.75²
    np.testing.assert_allclose(highs, once * high, atol=1e-5)
    small = 0.75 * shrink(jnp.asarray(high), 8)
    np.testing.assert_allclose(lows, once * upsample(small, 16, "bilinear"), atol=1e-5)


def test_lsu_keeps_the_low_res_small(config, photos, tmp_path):
    words = ["--config.data.upsampling=lsu", "--config.data.low_res=8", "--config.data.crops=0"]
    info = DatasetInfo.read(precompute(config, photos, tmp_path / "out", *words, "--config.data.dtype=bfloat16"))
    pairs = spread_records(info, 7)
    assert (pairs["low"].shape, pairs["high"].shape) == ((7, 8, 8, 3), (7, 32, 32, 3))
    high = pairs["high"].astype(np.float32).reshape(7, 8, 4, 8, 4, 3)
    np.testing.assert_allclose(pairs["low"].astype(np.float32), high.mean(axis=(2, 4)), atol=2e-2)


def test_preview_shows_pairs_side_by_side(whole, tmp_path):
    (tmp_path / "preview.png").write_bytes(whole["preview.png"])
    with Image.open(tmp_path / "preview.png") as preview:
        assert preview.width >= 2 * 32
        assert preview.height >= 6 * 32


def test_batch_size_and_threads_do_not_change_the_bytes(config, photos, tmp_path, whole):
    out = precompute(config, photos, tmp_path / "out", "--batch-size", "5", "--config.data.num_threads=1")
    assert content(out) == whole


class Died(BaseException):
    """Acts as the death of the process."""


class Mortal:
    """Lets a function be called so many times by itself and its fellows, and dies at the next call."""

    calls_left = 0

    def __init__(self, function):
        self.function = function

    def __call__(self, *arguments):
        Mortal.calls_left -= 1
        if Mortal.calls_left < 0:
            raise Died
        return self.function(*arguments)


def test_dying_before_any_write_loses_nothing(config, photos, tmp_path, monkeypatch):
    """The process dies before its n-th sync or renaming, for every n, and is started again."""
    words = ["--records-per-shard", "12"]
    whole = content(precompute(config, photos, tmp_path / "whole", *words))
    monkeypatch.setattr(os, "fsync", Mortal(os.fsync))
    monkeypatch.setattr(os, "replace", Mortal(os.replace))
    deaths = 0
    while True:
        out = tmp_path / str(deaths)
        Mortal.calls_left = deaths
        try:
            precompute(config, photos, out, *words)
            break
        except Died:
            deaths += 1
        for name, found in content(out).items():
            assert name.endswith((".partial", ".tmp")) or found == whole[name]
        Mortal.calls_left = 1000
        precompute(config, photos, out, *words)
        assert_same(content(out), whole)
    assert deaths > 20


def assert_same(found: dict[str, bytes], whole: dict[str, bytes]):
    """All of the dataset is there, and of the runs that died nothing among the shards."""
    assert {name: found[name] for name in whole} == whole
    assert not [name for name in found.keys() - whole.keys() if name.startswith("shards/")]


@pytest.fixture
def command(config, photos):
    """Function (folder, words, shell limits) → the command as a process of its own."""

    def start(out, *words, limit=""):
        line = [sys.executable, "-m", "fmboost_jax.precompute", "--config", config, "--images", str(photos)]
        line += ["--out", str(out), "--records-per-shard", "6", *words]
        line = ["bash", "-c", f'{limit} exec "$@"', "bash", *line]
        return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    return start


def test_runs_killed_at_random_end_with_the_same_bytes(command, tmp_path, whole):
    """SIGKILL is sent when a random number of files, hidden and temporary ones too, have appeared in the folder."""
    out, kills, moments = tmp_path / "out", 0, random.Random(0)
    for threshold in sorted(moments.sample(range(1, 10), 3)):
        process = command(out)
        while process.poll() is None and len(list(out.rglob("*"))) <= threshold:
            time.sleep(0)
        process.kill()
        process.communicate()
        kills += process.returncode == -9
        assert process.returncode in (-9, 0)
    assert kills >= 2
    process = command(out)
    printed, errors = process.communicate()
    assert process.returncode == 0, errors
    assert "skipped 2:" in printed
    assert_same(content(out), whole)


def test_concurrent_processes_write_disjoint_shards_of_one_dataset(command, tmp_path, whole):
    """Any number of processes writes the bytes that one process writes."""
    shares = [command(tmp_path / "out", "--process-index", str(index), "--process-count", "2") for index in range(2)]
    ends = [(*share.communicate(), share.returncode) for share in shares]
    assert [code for _, _, code in ends] == [0, 0], ends
    assert any("21 pairs of 7 photographs" in printed for printed, _, _ in ends)
    assert content(tmp_path / "out") == whole


def test_a_process_writes_its_own_shards_only(config, photos, tmp_path, whole, capsys):
    out = tmp_path / "out"
    precompute(config, photos, out, "--process-index", "1", "--process-count", "3")
    shards = sorted(path.name for path in out.glob("shards/*.json"))
    assert shards == ["00001.json", "00004.json"]
    assert not (out / "dataset.json").exists()
    assert "2 of 5 shards are finished" in capsys.readouterr().out
    with pytest.raises(InputError, match="precompute has not finished"):
        DatasetInfo.read(out)
    # Another number of processes may continue it.
    precompute(config, photos, out)
    assert content(out) == whole


def test_only_a_damaged_shard_is_written_again(config, photos, tmp_path, whole, monkeypatch):
    out = precompute(config, photos, tmp_path / "out")
    path = out / "shards/00002.array_record"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"00002\.array_record .*run the dataset's precompute command again"):
        DatasetInfo.read(out)
    made, real = [], plan.Plan.finish_shard
    monkeypatch.setattr(
        plan.Plan, "finish_shard", lambda self, shard, done: (made.append(shard), real(self, shard, done))
    )
    precompute(config, photos, out)
    assert made == [2]
    assert content(out) == whole


def test_other_settings_are_refused_and_change_nothing(config, photos, tmp_path, whole):
    out = precompute(config, photos, tmp_path / "out")
    with pytest.raises(
        InputError, match=r"begun with other settings .*: low_res was 16 and is now 8; .*another output"
    ):
        precompute(config, photos, out, "--config.data.low_res=8")
    assert content(out) == whole


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--images", "{tmp}/nowhere", "--out", "{tmp}/out"], "photo folder .*nowhere does not exist"),
        (["--images", "{tmp}/empty", "--out", "{tmp}/out"], "photo folder .*empty holds no photographs"),
        (["--images", "{photos}", "--out", "{photos}/latents"], "is inside the photo folder"),
        (["--images", "{photos}", "--out", "{tmp}/out", "--process-index", "2"], "process index 2 is outside 0 to 0"),
        (["--images", "{photos}", "--out", "{tmp}/out", "--batch-size", "0"], "--batch-size is 0, expected 1 or more"),
        (["--images", "{photos}", "--out", "{tmp}/out", "--config.data.low_res=32"], "low_res 32 must be between"),
        (["--images", "{photos}", "--out", "{tmp}/out", "--config.data.hig_res=32"], "hig_res"),
        (["--images", "{photos}", "--out", "{tmp}/out", "--config.data.high_res=999"], "none of the 9 photographs can"),
        (["--images", "{photos}", "--out", "{tmp}/file/out"], "cannot write .*file/out"),
    ],
)
def test_bad_input_is_one_line(words, message, config, photos, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    before = content(photos)
    with pytest.raises(InputError, match=message) as caught:
        main(["--config", config, *(word.format(tmp=tmp_path, photos=photos) for word in words)])
    assert "\n" not in str(caught.value)
    assert content(photos) == before
    assert not (tmp_path / "out/dataset.json").exists()


def test_a_full_disk_is_one_line_and_leaves_no_partial_shard(command, tmp_path):
    process = command(tmp_path / "out", limit="ulimit -f 100;")  # KiB a file; a shard has 128
    _, errors = process.communicate()
    assert process.returncode == 2
    assert "error: cannot write" in errors.splitlines()[-1]
    assert "File too large" in errors.splitlines()[-1]
    assert "Traceback" not in errors
    assert not list((tmp_path / "out").rglob("*.array_record"))


@pytest.mark.parametrize(("value", "shown"), [(np.nan, "nan"), (1e6, "1000000.0")])
def test_latents_beyond_the_dtypes_range_are_named(value, shown, config, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "fmboost_jax.models.first_stage.FirstStage.encode_raw", lambda self, image: image.at[0, 3, 4, 0].set(value)
    )
    with pytest.raises(
        InputError, match=rf"photograph 0.png: its latent reaches {shown}, which float16 cannot represent"
    ):
        precompute(config, photos, tmp_path / "out")
    assert not list((tmp_path / "out/shards").glob("0*"))
