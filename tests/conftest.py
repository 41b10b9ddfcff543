"""What every test shares: the golden numbers, eight virtual devices, a cache of compiled programs."""

import ctypes
import gc
import os
import pathlib
import sys
import tempfile

# Meshes of several devices are tested on virtual ones; must be said before jax starts.
os.environ.setdefault("JAX_PLATFORMS", "cpu")  # libtpu, installed to plan with, would look for TPUs
# LLVM's optimisations take half of a compilation and small networks gain nothing by them; XLA's own passes all run.
os.environ["XLA_FLAGS"] = " ".join(
    (
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        "--xla_backend_optimization_level=0",
    )
)

# Programs compiled once serve every test and every command of one run of the suite.
_run = os.environ.get("PYTEST_XDIST_TESTRUNUID", str(os.getpid()))
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.path.join(tempfile.gettempdir(), f"fmboost_jax_tests_{_run}"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")

import jax
import numpy as np
import pytest

RELEASE_ABOVE = 1.5 * 2**30  # bytes of resident memory
GOLDEN = pathlib.Path(os.environ.get("FMBOOST_GOLDEN", pathlib.Path(__file__).parents[2] / "shared" / "golden"))


def relative_error(found, expected) -> float:
    """‖found − expected‖ / ‖expected‖ in float64."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def resident_memory() -> int:
    """Bytes of this process in memory; 0 where the system has no /proc."""
    status = pathlib.Path("/proc/self/statm")
    return int(status.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if status.exists() else 0


@pytest.fixture(scope="module", autouse=True)
def _released_memory():
    """Drop the compiled programs of a module that leaves the process large, so that a worker stays under 4 GiB."""
    yield
    if resident_memory() > RELEASE_ABOVE:
        jax.clear_caches()
        gc.collect()
        if sys.platform == "linux":
            ctypes.CDLL(None).malloc_trim(0)  # else glibc keeps what was freed


@pytest.fixture(scope="session")
def golden():
    """Reader of a file of numbers measured on the PyTorch reference (layout NCHW); skips where they are not at hand."""

    def read(name: str) -> dict[str, np.ndarray]:
        if not (GOLDEN / name).exists():
            pytest.skip(f"the reference's numbers are not here ({name}); FMBOOST_GOLDEN names their folder")
        with np.load(GOLDEN / name) as file:
            return dict(file)

    return read


@pytest.fixture(scope="session")
def photographs(tmp_path_factory) -> pathlib.Path:
    """A folder of four real photographs, 96 pixels and more a side."""
    import skimage.data
    from PIL import Image

    folder = tmp_path_factory.mktemp("photographs")
    for name in ("astronaut", "coffee", "chelsea", "rocket"):
        photograph = Image.fromarray(getattr(skimage.data, name)())
        photograph.thumbnail((160, 160))
        photograph.save(folder / f"{name}.png")
    return folder


@pytest.fixture(scope="session")
def pairs(photographs, tmp_path_factory) -> pathlib.Path:
    """A dataset of 16 latent pairs, 16² → 32² pixels, made by the command."""
    from tests.commands import SMALL, call

    folder = tmp_path_factory.mktemp("data") / "pairs"
    call("precompute", "--config", "configs/demo.py", *SMALL, "--images", photographs, "--out", folder)
    return folder


@pytest.fixture(scope="session")
def run(pairs, tmp_path_factory) -> pathlib.Path:
    """A training run of three steps on them, its averaged weights others than the online ones; not to be written to."""
    from tests.commands import call, train_words

    workdir = tmp_path_factory.mktemp("run")
    call("train", *train_words(pairs, workdir, "--config.train.steps=3", "--config.ema.copy_until=1"))
    return workdir
