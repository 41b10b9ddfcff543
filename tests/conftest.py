"""Fixtures of all tests: the golden numbers, eight virtual devices, a cache of compiled programs."""

import ctypes
import fcntl
import gc
import os
import pathlib
import sys
import tempfile
from collections.abc import Callable

# Meshes of several devices are tested on virtual ones. JAX reads these variables when it starts.
os.environ.setdefault("JAX_PLATFORMS", "cpu")  # libtpu, installed to plan with, would look for TPUs
# LLVM's optimisations take half of a compilation, MLIR's fusion emitters half of the rest; small networks gain nothing
# by them. XLA's own passes all run. A program is one LLVM module: 32 for several threads take a third longer.
COMPILER_FLAGS = (
    "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
)
os.environ["XLA_FLAGS"] = " ".join(
    (os.environ.get("XLA_FLAGS", ""), "--xla_force_host_platform_device_count=8", COMPILER_FLAGS)
)

# Programs compiled once serve every test and every command of one run of the suite.
_run = os.environ.get("PYTEST_XDIST_TESTRUNUID", str(os.getpid()))
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.path.join(tempfile.gettempdir(), f"fmboost_jax_tests_{_run}"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")  # a small network has hundreds of small ones

import jax
import numpy as np
import pytest

RELEASE_ABOVE = 1.9 * 2**30  # bytes of resident memory
GOLDEN = pathlib.Path(os.environ.get("FMBOOST_GOLDEN", pathlib.Path(__file__).parents[2] / "shared" / "golden"))
# The tiny autoencoder of FLUX.2's latents, with its pretrained weights.
TAEF2 = pathlib.Path(os.environ.get("FMBOOST_TAEF2", GOLDEN.parent / "taef2"))


def relative_error(found, expected) -> float:
    """‖found − expected‖ / ‖expected‖ in float64."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def resident_memory() -> int:
    """Bytes of this process in memory; 0 where the system has no /proc."""
    status = pathlib.Path("/proc/self/statm")
    return int(status.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if status.exists() else 0


def pytest_collection_finish():
    """Exclude the imported modules, half a million objects, from later garbage collections."""
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def _released_memory():
    """Drop the compiled programs of a module that leaves the process large, so that a worker stays under 4 GiB."""
    yield
    if resident_memory() > RELEASE_ABOVE:
        jax.clear_caches()
        gc.collect()
        if sys.platform == "linux":
            ctypes.CDLL(None).malloc_trim(0)  # otherwise glibc keeps freed memory


@pytest.fixture(scope="session")
def golden():
    """Reader of a file of numbers measured on the PyTorch reference (layout NCHW); skips where they are missing."""

    def read(name: str) -> dict[str, np.ndarray]:
        if not (GOLDEN / name).exists():
            pytest.skip(f"the reference's numbers are not here ({name}); FMBOOST_GOLDEN names their folder")
        with np.load(GOLDEN / name) as file:
            return dict(file)

    return read


@pytest.fixture(scope="session")
def made_once(tmp_path_factory):
    """Function (name, make) → a folder that `make` filled, in one worker for all; others wait for it. Read only."""
    base = tmp_path_factory.getbasetemp()
    root = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def folder(name: str, make: Callable[[pathlib.Path], object]) -> pathlib.Path:
        path, finished = root / f"shared-{name}", root / f"shared-{name}.finished"
        with open(root / f"shared-{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not finished.exists():
                path.mkdir()
                make(path)
                finished.touch()
        return path

    return folder


@pytest.fixture(scope="session")
def photographs(made_once) -> pathlib.Path:
    """A folder of four real photographs, 64 pixels and more a side."""

    def make(folder):
        import skimage.data
        from PIL import Image

        for name in ("astronaut", "coffee", "chelsea", "rocket"):
            photograph = Image.fromarray(getattr(skimage.data, name)())
            photograph.thumbnail((97, 97))
            photograph.save(folder / f"{name}.png")

    return made_once("photographs", make)


@pytest.fixture(scope="session")
def pairs(photographs, made_once) -> pathlib.Path:
    """A dataset of 16 latent pairs, 16² → 32² pixels, made by the command."""
    from tests.commands import SMALL, call

    def make(folder):
        call("precompute", "--config", "configs/demo.py", *SMALL, "--images", photographs, "--out", folder)

    return made_once("pairs", make)


@pytest.fixture(scope="session")
def run(pairs, made_once) -> pathlib.Path:
    """A training run of three steps on them, whose averaged weights differ from the online ones. Read only."""
    from tests.commands import call, train_words

    def make(folder):
        call("train", *train_words(pairs, folder, "--config.train.steps=3", "--config.ema.copy_until=1"))

    return made_once("run", make)
