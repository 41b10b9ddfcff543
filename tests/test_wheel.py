"""The built wheel works outside a checkout: commands find the packaged configs, protocols and weights by name."""

import os
import pathlib
import subprocess
import sys
import sysconfig
import zipfile

import pytest
from PIL import Image

from tests.commands import ROOT
from tests.conftest import COMPILER_FLAGS


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> pathlib.Path:
    """Built from a copy of the tracked files, as a release is."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    tracked = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for name in tracked.stdout.decode().split("\0"):
        if name.startswith(("fmboost_jax/", "configs/")) or name in (
            "pyproject.toml",
            "setup.py",
            "README.md",
            "LICENSE",
        ):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).symlink_to(ROOT / name)
    words = ["wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", out, source]
    subprocess.run([sys.executable, "-m", "pip", *map(str, words)], check=True)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory):
    """Function (words) → finished process, in a fresh environment with the wheel and this suite's other packages."""
    folder = tmp_path_factory.mktemp("environment")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"XLA_FLAGS": COMPILER_FLAGS}
    interpreter = folder / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    words = ["--python", interpreter, "install", "--quiet", "--no-deps", "--no-index", wheel]
    subprocess.run([sys.executable, "-m", "pip", *map(str, words)], env=environment, check=True)
    # A path in a .pth file is searched after the environment's own packages, and the .pth files in that path are not
    # read: an editable install of a checkout does not show.
    site = next((folder / "lib").glob("python*/site-packages"))
    (site / "suite.pth").write_text(sysconfig.get_path("purelib") + "\n")

    def run(*words):
        return subprocess.run(
            [interpreter, *map(str, words)], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
        )

    run.folder = folder
    return run


def test_the_wheel_carries_configs_weights_and_types(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    for config in (ROOT / "configs").rglob("*.py"):
        assert f"fmboost_jax/configs/{config.relative_to(ROOT / 'configs').as_posix()}" in names
    assert "fmboost_jax/py.typed" in names
    assert "fmboost_jax/assets/photo-x2/unet.safetensors" in names
    assert not [name for name in names if name.startswith(("tests/", "configs/", "bench/"))]


def test_the_imported_package_is_the_installed_one(python):
    done = python("-c", "import fmboost_jax; print(fmboost_jax.__file__)")
    assert done.stdout.startswith(str(python.folder)), done


def test_train_finds_a_config_by_name(python):
    done = python("-m", "fmboost_jax.train", "--config", "cfm1024.py:x4", "--workdir", "run")
    assert done.returncode == 2, done
    assert "data.dir is empty" in done.stderr
    assert "Traceback" not in done.stderr


def test_sample_and_evaluate_work_without_a_checkout(python):
    folder = python.folder / "photographs"
    folder.mkdir()
    Image.radial_gradient("L").convert("RGB").resize((24, 24)).save(folder / "disc.png")
    done = python("-m", "fmboost_jax.sample", "--input", "photographs/disc.png", "--steps", "1", "--out", "boosted")
    assert done.returncode == 0, done.stderr
    assert Image.open(python.folder / "boosted" / "disc.png").size == (48, 48)
    words = ("--images", "photographs", "--reference", "photographs", "--metrics", "psnr,ssim", "--out", "results")
    done = python("-m", "fmboost_jax.evaluate", *words)
    assert done.returncode == 0, done.stderr
    assert (python.folder / "results").is_dir()
