"""`python -m fmboost_jax.export`: bundles equal to their run, and programs that run without this package."""

import json
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from fmboost_jax.boosting.booster import Booster
from fmboost_jax.boosting.stablehlo import boost_and_decode
from fmboost_jax.data.dataset import DatasetInfo
from fmboost_jax.data.records import PairSource
from fmboost_jax.errors import InputError
from fmboost_jax.export import export
from fmboost_jax.files import atomic_folder
from fmboost_jax.flow.coupling import Coupling
from fmboost_jax.interop import load_model
from fmboost_jax.models.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig
from fmboost_jax.models.first_stage import FirstStage, LatentSpec
from fmboost_jax.models.parameters import split
from fmboost_jax.models.unet import UNet, UNetConfig
from tests.commands import call, call_refused, environment, refused
from tests.random_models import random_model


@pytest.fixture(scope="module")
def bundle(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundles") / "small"
    call("export", "--checkpoint", run, "--out", folder, "--orbax", "--stablehlo", "--sizes", "8x16", "--steps", 2)
    return folder


@pytest.fixture
def copy(bundle, tmp_path):
    folder = tmp_path / "copy"
    folder.mkdir()
    for name in ("config.json", "unet.safetensors"):
        (folder / name).write_bytes((bundle / name).read_bytes())
    return folder


@pytest.fixture(scope="module")
def latents():
    return np.random.default_rng(0).uniform(-1, 1, (3, 8, 16, 3)).astype(np.float32)


def test_a_bundle_boosts_as_its_run(run, pairs, bundle, latents):
    trained, shared = Booster.load(run), Booster.load(bundle)
    np.testing.assert_array_equal(trained.boost(latents, steps=2), shared.boost(latents, steps=2))
    assert (shared.factor, shared.coupling) == (trained.factor, trained.coupling)
    card = (bundle / "README.md").read_text()
    assert "16² → 32²" in card
    config = json.loads((bundle / "config.json").read_text())
    assert (config["low_res"], config["high_res"], config["step"]) == (16, 32, 3)
    assert config["latents"]["channels"] == 3
    source = PairSource(DatasetInfo.read(pairs))
    high = np.stack([source[number]["high"] for number in range(len(source))]).astype(np.float32)
    np.testing.assert_allclose(config["statistics"]["deviation"], high.std((0, 1, 2)), rtol=1e-4)
    np.testing.assert_allclose(config["statistics"]["mean"], high.mean((0, 1, 2)), atol=1e-4)
    assert sorted(path.name for path in bundle.parent.iterdir()) == ["small"]


def test_programs_run_without_this_package(bundle, latents, tmp_path):
    """The code of the page, in a process without fmboost_jax, flax and jaxtyping: for any size, and for 8×16."""
    page = (bundle / "stablehlo" / "README.md").read_text()
    (snippet,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    tasks = {"whole": ("boost.bin", latents), "part": ("boost.bin", latents[:2, :, :6])}
    tasks["sized"] = "boost_8x16.bin", latents
    script = ["import sys", "sys.modules.update(fmboost_jax=None, flax=None, jaxtyping=None)"]
    for name, (program, given) in tasks.items():
        np.save(tmp_path / f"{name}.npy", given)
        code = snippet.replace("boost.bin", program)
        code = code.replace("latents = ...", f"latents = np.load({str(tmp_path / name)!r} + '.npy')")
        saved = f"np.save({str(tmp_path / name)!r} + '_images.npy', np.asarray(images))"
        script += [code, "assert program.platforms == ('cpu', 'cuda', 'tpu')", saved]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(script)],
        cwd=bundle / "stablehlo",
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    booster = Booster.load(bundle)
    for name, (_, given) in tasks.items():
        expected = booster.decode(booster.boost(given, steps=2))
        found = np.load(tmp_path / f"{name}_images.npy")
        assert found.shape == (len(given), 16, 2 * given.shape[2], 3)
        assert np.abs(found.astype(int) - expected).max() <= 1


def test_a_program_for_any_size_has_attention_and_psu():
    """The autoencoder has attention, the flow starts from PSU; networks on pixels have neither."""
    config = AutoencoderKLConfig(channels=(8, 8), blocks=1, norm_groups=4)
    spec = LatentSpec("kl", "", 4, 2, scaling_factor=0.18215, inversion_steps=1)
    stage = FirstStage(spec, random_model(AutoencoderKL, config))
    unet = random_model(UNet, UNetConfig(model_channels=32, channel_mult=(1,), num_res_blocks=1, dim_head=16))
    booster = Booster(unet, stage, Coupling(upsampling="psu_bicubic"), 2)
    latents = np.random.default_rng(0).standard_normal((2, 3, 5, 4), np.float32)
    program = boost_and_decode(booster, steps=1, method="euler")
    weights = booster.parameters, split(stage.model)[1]
    found = jax.jit(program.call)(*weights, latents, np.arange(2, dtype=np.uint32))
    assert np.abs(np.asarray(found, int) - booster.decode(booster.boost(latents, steps=1))).max() <= 1


def test_the_weights_as_an_orbax_checkpoint(bundle):
    found = split(load_model(str(bundle / "orbax")))[1]
    expected = load_file(bundle / "unet.safetensors")
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)


def test_damaged_bundles_are_refused(copy):
    tensors = load_file(copy / "unet.safetensors")
    name = sorted(tensors)[0]
    save_file({**tensors, name: tensors[name][..., :1]}, copy / "unet.safetensors")
    with pytest.raises(InputError, match=re.escape(name)):
        Booster.load(copy)
    (copy / "unet.safetensors").write_bytes(b"\0" * 20)
    with pytest.raises(InputError, match="not a whole safetensors file"):
        Booster.load(copy)
    (copy / "config.json").write_text('{"format": "another"}')
    with pytest.raises(InputError, match="fmboost_jax bundle 1"):
        Booster.load(copy)


@pytest.mark.parametrize(("field", "value"), [("channels", 4), ("scaling_factor", 0.18215), ("shift_factor", 0.1)])
def test_an_autoencoder_other_than_the_trained_one_is_refused(copy, field, value):
    config = json.loads((copy / "config.json").read_text())
    config["latents"][field] = value
    del config["statistics"]  # of 3 channels
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=f"has {field} .*, this booster was trained for {value}"):
        Booster.load(copy)


def test_scales_that_differ_by_rounding_are_the_same():
    trained = LatentSpec("kl", "a", 4, 8, 0.18215, 0.0)
    trained.check(LatentSpec("kl", "b", 4, 8, float(np.float32(0.18215)), 0.0), "b")
    with pytest.raises(InputError, match="scaling_factor"):
        trained.check(LatentSpec("kl", "b", 4, 8, 0.13025, 0.0), "b")


def test_a_failed_export_leaves_nothing(tmp_path):
    def fill():
        with atomic_folder(tmp_path / "bundle") as folder:
            (folder / "half").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fill()
    assert not list(tmp_path.iterdir())


def test_bad_input_gets_one_line(run, bundle, tmp_path):
    assert "exists already" in refused("export", "--checkpoint", run, "--out", bundle)
    options = ("--checkpoint", run, "--out", tmp_path / "new", "--stablehlo", "--sizes")
    assert "HEIGHTxWIDTH" in call_refused("export", *options, "8")
    assert "is a bundle already" in call_refused("export", "--checkpoint", bundle, "--out", tmp_path / "new")
    assert not list(tmp_path.iterdir())


def test_export_as_a_function(run, bundle, tmp_path):
    """It writes the same files as the command, and weights that are rounded to float16."""
    assert "step 3" in export(run, tmp_path / "new", dtype="float16")
    assert (tmp_path / "new" / "config.json").read_bytes() == (bundle / "config.json").read_bytes()
    halves, whole = (load_file(folder / "unet.safetensors") for folder in (tmp_path / "new", bundle))
    assert {array.dtype for array in halves.values()} == {np.dtype(np.float16)}
    for name, array in whole.items():
        np.testing.assert_allclose(halves[name], array, rtol=1e-3, atol=1e-6, err_msg=name)
    with pytest.raises(InputError, match="dtype 'bfloat16' is unknown"):
        export(run, tmp_path / "other", dtype="bfloat16")


def test_blended_weights_are_the_mean_with_another_boosters(run, bundle, tmp_path):
    """The other one is a bundle or a run of the same network; any other is refused and nothing is written."""
    whole = load_file(bundle / "unet.safetensors")
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_bytes((bundle / "config.json").read_bytes())
    save_file({name: array + 1 for name, array in whole.items()}, other / "unet.safetensors")
    call("export", "--checkpoint", run, "--out", tmp_path / "new", "--blend", other, "--blend-share", 0.25)
    for name, array in load_file(tmp_path / "new" / "unet.safetensors").items():
        np.testing.assert_allclose(array, whole[name] + 0.25, rtol=1e-5, atol=1e-6, err_msg=name)
    export(run, tmp_path / "same", blend=run)
    for name, array in load_file(tmp_path / "same" / "unet.safetensors").items():
        np.testing.assert_allclose(array, whole[name], rtol=1e-6, err_msg=name)
    options = "--checkpoint", run, "--out", tmp_path / "refused", "--blend"
    assert "expected the run's network" in call_refused("export", *options, "photo-x4")
    assert "0 to 1" in call_refused("export", *options, other, "--blend-share", 2)
    config = json.loads((other / "config.json").read_text())
    config["latents"]["scaling_factor"] = 2.0
    (other / "config.json").write_text(json.dumps(config))
    assert "its autoencoder has scaling_factor" in call_refused("export", *options, other)
    assert not (tmp_path / "refused").exists()


def test_missing_flatbuffers_names_the_extra(bundle, tmp_path, monkeypatch):
    from fmboost_jax.boosting import stablehlo

    monkeypatch.setattr(stablehlo.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'fmboost_jax\[export\]'"):
        stablehlo.write_programs(tmp_path / "programs", Booster.load(bundle), steps=1, method="euler")
