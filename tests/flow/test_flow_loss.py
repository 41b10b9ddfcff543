"""The flow-matching loss by hand, and how its times are drawn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmboost_jax.flow.loss import flow_matching_loss, sample_time
from fmboost_jax.flow.paths import GVPPath, LinearPath


def test_a_known_case_by_hand():
    """Two examples of two numbers; on the linear path the target is x1 − x0, and x_t = t x1 + (1 − t) x0.

    Example 1: x0 = (0, 1), x1 = (2, 5), t = 0.5: x_t = (1, 3), target (2, 4), predicted 2 x_t = (2, 6):
    (0 + 4) / 2 = 2.
    Example 2: x0 = (1, 1), x1 = (1, 0), t = 0.25: x_t = (1, 0.75), target (0, −1), predicted (2, 1.5):
    (4 + 6.25) / 2 = 5.125.
    """
    x0, x1 = jnp.array([[0.0, 1.0], [1.0, 1.0]]), jnp.array([[2.0, 5.0], [1.0, 0.0]])
    loss = flow_matching_loss(lambda x, t: 2 * x, LinearPath(), x0, x1, jnp.array([0.5, 0.25]))
    np.testing.assert_allclose(loss, [2.0, 5.125], rtol=1e-6)


def test_the_curved_path_by_hand():
    """GVP at t = 0.5: α′ = −σ′ = (π/2) √½, so from x0 = 1 to x1 = 3 the velocity is (π/2) √½ · 2; predicted 0."""
    loss = flow_matching_loss(
        lambda x, t: jnp.zeros_like(x), GVPPath(), jnp.ones((1, 4, 4, 2)), 3 * jnp.ones((1, 4, 4, 2)), jnp.array([0.5])
    )
    np.testing.assert_allclose(loss, [np.pi**2 / 2], rtol=1e-5)


@pytest.mark.parametrize("path", [LinearPath(), GVPPath()])
def test_the_true_velocity_has_loss_zero(path):
    x0, x1 = jax.random.normal(jax.random.key(0), (2, 3, 4, 4, 2))
    t = jnp.array([0.1, 0.5, 0.9])
    np.testing.assert_allclose(
        flow_matching_loss(lambda x, t: path.velocity(x0, x1, t), path, x0, x1, t), 0, atol=1e-10
    )


def test_the_network_gets_each_examples_own_time():
    asked = []

    def velocity_fn(x, t):
        asked.append((x, t))
        return x

    x0, x1, t = jnp.zeros((3, 2)), jnp.ones((3, 2)), jnp.array([0.0, 0.25, 1.0])
    flow_matching_loss(velocity_fn, LinearPath(), x0, x1, t)
    ((x, given),) = asked
    np.testing.assert_array_equal(given, t)
    np.testing.assert_array_equal(x, jnp.stack([t, t], 1))


def test_the_loss_of_bfloat16_is_computed_in_float32():
    """bfloat16 has 8 bits: 256 + 1 − 256 is 0 in it, and 1 in the float32 of the loss."""
    x0, x1 = jnp.zeros((1, 2), jnp.float16), jnp.full((1, 2), 257.0, jnp.float16)
    loss = flow_matching_loss(lambda x, t: jnp.full(x.shape, 256, jnp.bfloat16), LinearPath(), x0, x1, jnp.array([0.5]))
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, [1.0])


def test_sigma_min_needs_and_uses_noise():
    x0, x1, noise = jax.random.normal(jax.random.key(1), (3, 2, 4))
    t = jnp.array([0.3, 0.6])
    seen = []
    flow_matching_loss(lambda x, t: (seen.append(x), x)[1], LinearPath(0.1), x0, x1, t, noise)
    np.testing.assert_allclose(seen[0], LinearPath().interpolate(x0, x1, t) + 0.1 * noise, rtol=1e-6)


def test_times_are_uniform():
    t = np.asarray(sample_time(jax.random.split(jax.random.key(0), 20_000)))
    assert t.dtype == np.float32
    assert t.min() >= 0
    assert t.max() < 1
    counts, _ = np.histogram(t, bins=10, range=(0, 1))
    assert np.abs(counts - 2000).max() < 5 * np.sqrt(2000 * 0.9)


def test_a_time_depends_on_its_examples_key_alone():
    keys = jax.random.split(jax.random.key(0), 8)
    t = sample_time(keys)
    np.testing.assert_array_equal(t[::-1], sample_time(keys[::-1]))
    np.testing.assert_array_equal(t[3:5], sample_time(keys[3:5]))
    assert len(np.unique(t)) == 8
