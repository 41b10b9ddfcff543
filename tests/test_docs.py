"""The code in README.md and CONTRIBUTING.md runs."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from fmboost_jax.flow import objectives, paths, solvers
from fmboost_jax.interop.autoencoder_kinds import AUTOENCODERS
from fmboost_jax.interop.autoencoders import load_first_stage
from fmboost_jax.metrics.table import METRICS
from fmboost_jax.models import networks
from fmboost_jax.registry import import_extensions
from tests.commands import ROOT

TABLES = (
    solvers.FIXED_GRID,
    solvers.GRIDS,
    paths.PATHS,
    objectives.OBJECTIVES,
    networks.NETWORKS,
    METRICS,
    AUTOENCODERS,
)


@pytest.fixture
def extensions(tmp_path):
    """Imports all code blocks of CONTRIBUTING.md, each from its own file; the tables are restored afterwards."""
    before = [dict(table) for table in TABLES]
    blocks = re.findall(r"```python\n(# (\w+\.py).*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)
    assert len(blocks) >= 7
    for code, name in blocks:
        (tmp_path / name).write_text(code)
    import_extensions(str(tmp_path / name) for _, name in blocks)
    yield
    for table, entries in zip(TABLES, before, strict=True):
        table.clear()
        table.update(entries)


@pytest.mark.usefixtures("extensions")
def test_what_contributing_adds_works_together():
    config = networks.NETWORKS["patches"].config()
    assert isinstance(config, networks.NetworkConfig)
    network = networks.make_network(config, jax.random.key(0))
    x0, x1 = jax.random.normal(jax.random.key(1), (2, 2, 8, 8, 16))

    def velocity_fn(x, t, second_time=None, examples=slice(None)):
        return network.velocity(x, t, x0[examples])

    objective = objectives.make_objective("huber(c=0.01)")
    path = paths.make_path("polynomial(degree=3.0)")
    loss = objective.loss(velocity_fn, path, x0, x1, jax.random.split(jax.random.key(2), 2))
    assert loss.shape == (2,)
    assert jnp.isfinite(loss).all()
    # ẋ = 2t, whose integral over [0, 1] is 1: exact for a method of second order on any grid.
    solver = solvers.Solver("ralston", 3, grid="power(exponent=2.0)")
    np.testing.assert_allclose(
        solver.integrate(lambda x, t: jnp.full_like(x, 2 * t[0]), jnp.zeros((1, 2))), 1, atol=1e-6
    )
    assert METRICS["mae"].function(x0, x0).tolist() == [0, 0]
    stage = load_first_stage("halves")
    image = jax.random.uniform(jax.random.key(3), (1, 4, 4, 3))
    np.testing.assert_allclose(stage.decode(stage.encode(image)), image, atol=1e-6)


def test_readme_enlarges_a_photograph(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.radial_gradient("L").convert("RGB").resize((32, 24)).save("photo.jpg")
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    exec(code, {})
    assert Image.open("large.png").size == (64, 48)
