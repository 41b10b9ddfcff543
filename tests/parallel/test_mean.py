"""The mean over devices, its small arrays summed as one vector."""

import jax
import jax.numpy as jnp
import numpy as np

from fmboost_jax.parallel import mean
from fmboost_jax.parallel.mesh import make_mesh


def test_arrays_of_every_size_are_means_over_all_examples(monkeypatch):
    monkeypatch.setattr(mean, "SMALL", 6)
    examples = np.random.default_rng(0).standard_normal((16, 2, 4)).astype(np.float32)

    def function(factor, x):
        average = factor * jnp.mean(x, axis=0)
        return {"large": average, "small": (average[0], average[:, 0]), "scalar": jnp.mean(x), "none": None}

    mesh = make_mesh({"data": 8, "fsdp": 1, "spatial": 1})
    assert mean.sums_at_once(mesh)
    found = jax.jit(mean.mean_over_devices(function, mesh))(3.0, examples)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, function(3.0, examples))


def test_other_meshes_keep_the_compilers_sums():
    assert not mean.sums_at_once(make_mesh({"data": 4, "fsdp": 2, "spatial": 1}))
    assert not mean.sums_at_once(make_mesh({"data": 1, "fsdp": 1, "spatial": 1}, jax.devices()[:1]))
