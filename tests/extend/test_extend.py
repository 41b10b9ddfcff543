"""Extensions from outside the package: one file and one entry of a table each, in real commands."""

import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from fmboost_jax.errors import InputError
from fmboost_jax.flow.solvers import Solver, integrate_adaptive
from fmboost_jax.interop.autoencoders import load_first_stage
from fmboost_jax.models.first_stage import LatentSpec
from fmboost_jax.models.networks import NETWORKS
from fmboost_jax.registry import import_extensions
from fmboost_jax.training.config import TrainingConfig
from fmboost_jax.training.step import init_state, make_train_step
from tests.commands import command
from tests.datasets import write_dataset

HERE = pathlib.Path(__file__).parent
TABLES = {
    "fmboost_jax.flow.solvers": ("FIXED_GRID", "ADAPTIVE", "GRIDS"),
    "fmboost_jax.flow.objectives": ("OBJECTIVES",),
    "fmboost_jax.models.networks": ("NETWORKS",),
    "fmboost_jax.interop.autoencoder_kinds": ("AUTOENCODERS",),
}


@pytest.fixture
def extend():
    """Import extension files; the tables are as they were after the test."""
    tables = [getattr(sys.modules[module], table) for module, names in TABLES.items() for table in names]
    before = [dict(table) for table in tables]
    yield lambda *names: import_extensions(str(HERE / f"{name}.py") for name in names)
    for table, entries in zip(tables, before, strict=True):
        for name in table.keys() - entries.keys():
            del table[name]


def decay(x, t):
    return -x * t[:, None]


def test_solvers_and_grids(extend):
    extend("ralston", "heun_euler", "power_grid")
    x = jnp.ones((1, 1))
    exact = np.exp(-0.5)
    found = Solver("ralston", steps=32, grid="power(power=1.5)").integrate(decay, x)
    np.testing.assert_allclose(found[0, 0], exact, atol=1e-3)
    assert Solver("ralston", steps=3).evaluations == 6
    solution = integrate_adaptive(decay, x, method="heun_euler", rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(solution.x[0, 0], exact, atol=1e-3)
    assert solution.evaluations == 2 * solution.steps


def test_an_autoencoder(extend):
    extend("shuffled")
    stage = load_first_stage("shuffled")
    image = jax.random.uniform(jax.random.key(0), (1, 4, 6, 3))
    latent = stage.encode(image)
    assert latent.shape == (1, 2, 3, 12)
    np.testing.assert_allclose(stage.decode(latent), image, atol=1e-6)


def test_an_objective_with_a_second_time(extend):
    extend("two_times", "toy_dit")
    network = NETWORKS["dit"].config(time_inputs=2)
    config = TrainingConfig(network="dit", architecture=network, objective="two_times(latest=0.5)")
    pairs = {name: jax.random.normal(jax.random.key(0), (2, 8, 8, 3)) for name in ("low", "high")}
    state = init_state(config)
    step = make_train_step(config, LatentSpec("identity", "", 3, 1))
    _, metrics = step(state, pairs | {"position": jnp.arange(2, dtype=jnp.uint32)})
    assert np.isfinite(metrics["loss"])
    with pytest.raises(InputError, match=r"needs a network with 2 time input\(s\), found 1: set dit.time_inputs=2"):
        TrainingConfig(network="dit", architecture=NETWORKS["dit"].config(), objective="two_times")


def test_train_and_sample_with_a_network_an_autoencoder_a_path_and_a_solver(tmp_path):
    write_dataset(tmp_path / "data", first_stage="shuffled", channels=12, downsampling=2, scaling_factor=2.0)
    extensions = ("toy_dit", "quadratic_path", "ralston", "power_grid", "shuffled")
    imports = [f"--import={HERE / name}.py" for name in extensions]
    run = tmp_path / "run"
    command(
        "train",
        *imports,
        f"--config={HERE / 'config.py'}",
        f"--workdir={run}",
        f"--config.data.dir={tmp_path / 'data'}",
        "--config.data.low_res=8",
        "--config.data.high_res=16",
        "--config.data.crops=0",
        "--config.train.batch_size=4",
        "--config.train.steps=2",
        "--config.evaluate.every=0",
    )
    Image.new("RGB", (12, 8), "teal").save(tmp_path / "photo.png")
    words = ("--booster", run, "--input", tmp_path / "photo.png", "--out", tmp_path / "out")
    command("sample", *imports, *words, "--method=ralston", "--steps=2", "--grid=power(power=1.5)")
    (image,) = (tmp_path / "out").glob("*.png")
    assert Image.open(image).size == (24, 16)
