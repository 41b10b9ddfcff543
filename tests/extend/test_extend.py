"""What a student adds from outside the package, each in its own file and one line in a table, in real commands."""

import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmboost_jax.flow.solvers import Solver, integrate_adaptive
from fmboost_jax.interop.autoencoders import load_first_stage
from fmboost_jax.registry import import_extensions
from fmboost_jax.training.checkpoints import load_weights
from tests.commands import command
from tests.datasets import write_dataset

HERE = pathlib.Path(__file__).parent
TABLES = {
    "fmboost_jax.flow.solvers": ("FIXED_GRID", "ADAPTIVE", "GRIDS"),
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


def test_train_and_sample_with_a_network_a_path_an_objective_and_a_solver(tmp_path):
    write_dataset(tmp_path / "data", first_stage="shuffled", channels=12, downsampling=2, scaling_factor=2.0)
    extensions = ("toy_dit", "quadratic_path", "two_times", "ralston", "shuffled")
    imports = [f"--import={HERE / name}.py" for name in extensions]
    command(
        "train",
        *imports,
        f"--config={HERE / 'config.py'}",
        f"--workdir={tmp_path / 'run'}",
        f"--config.data.dir={tmp_path / 'data'}",
        "--config.data.low_res=8",
        "--config.data.high_res=16",
        "--config.data.crops=0",
        "--config.train.batch_size=4",
        "--config.train.steps=2",
        "--config.evaluate.every=0",
    )
    parameters, config, step = load_weights(str(tmp_path / "run"))
    assert (step, config["network"], config["objective"]) == (2, "dit", "two_times(latest=0.9)")
    assert parameters["times.kernel"].shape == (2, 16)
