"""Paths: their algebra, the conversions against closed forms, the reference's numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmboost_jax.errors import InputError
from fmboost_jax.flow.paths import DIFFUSION_FORMS, GVPPath, LinearPath, Path, make_path
from tests.conftest import relative_error

PATHS = [LinearPath(), GVPPath()]
TIMES = jnp.linspace(0.05, 0.95, 7)


def triple(seed, batch=3):
    keys = jax.random.split(jax.random.key(seed), 3)
    return [jax.random.normal(key, (batch, 4, 3, 2)) for key in keys]


@pytest.mark.parametrize("path", PATHS)
def test_a_path_starts_at_the_source_and_ends_at_the_target(path):
    x0, x1, _ = triple(0)
    np.testing.assert_allclose(path.interpolate(x0, x1, jnp.zeros(3)), x0, atol=1e-6)
    np.testing.assert_allclose(path.interpolate(x0, x1, jnp.ones(3)), x1, atol=1e-6)


@pytest.mark.parametrize("path", PATHS)
def test_derivatives_agree_with_automatic_ones(path):
    np.testing.assert_allclose(jax.vmap(jax.grad(path.alpha))(TIMES), path.alpha_dot(TIMES), rtol=1e-5)
    np.testing.assert_allclose(jax.vmap(jax.grad(path.sigma))(TIMES), path.sigma_dot(TIMES), rtol=1e-5)
    x0, x1, _ = triple(1)
    t = jnp.array([0.1, 0.5, 0.9])
    _, along = jax.jvp(lambda t: path.interpolate(x0, x1, t), (t,), (jnp.ones(3),))
    np.testing.assert_allclose(path.velocity(x0, x1, t), along, rtol=1e-4, atol=1e-5)


def test_a_path_without_derivatives_is_differentiated():
    plain = type("Plain", (Path,), {"alpha": GVPPath.alpha, "sigma": GVPPath.sigma})()
    np.testing.assert_allclose(plain.alpha_dot(TIMES), GVPPath().alpha_dot(TIMES), rtol=1e-6)
    np.testing.assert_allclose(plain.sigma_dot(TIMES), GVPPath().sigma_dot(TIMES), rtol=1e-6)


@pytest.mark.parametrize("path", PATHS)
def test_each_example_has_its_own_time(path):
    x0, x1, _ = triple(2)
    t = jnp.array([0.2, 0.4, 0.9])
    together = path.interpolate(x0, x1, t)
    for i in range(3):
        np.testing.assert_allclose(together[i], path.interpolate(x0, x1, jnp.full(3, t[i]))[i], rtol=1e-6)


@settings(max_examples=30, deadline=None)
@given(path=st.sampled_from(PATHS), seed=st.integers(0, 1000), time=st.floats(0.02, 0.98))
def test_velocity_noise_and_score_are_consistent(path, seed, time):
    """x_t and its velocity determine x0: the noise; and the score of N(α x1, σ²) at x_t is −x0 / σ."""
    x0, x1, _ = triple(seed)
    t = jnp.full(3, time)
    x, velocity = path.interpolate(x0, x1, t), path.velocity(x0, x1, t)
    assert relative_error(path.noise(velocity, x, t), x0) < 1e-4
    assert relative_error(path.score(velocity, x, t), -x0 / path.sigma(t)[0]) < 1e-4


@pytest.mark.parametrize("sigma_min", [0.0, 0.3])
@pytest.mark.parametrize("kind", [LinearPath, GVPPath])
def test_the_conversions_on_gaussian_data(kind, sigma_min):
    """Source N(0, 1), target N(m, s²), independent: every conditional expectation is linear in x and known."""
    path, m, s = kind(sigma_min), 0.7, 0.5
    x = jnp.linspace(-2, 2, 7)[:, None]
    t = TIMES
    alpha, sigma = path.alpha(t)[:, None], path.sigma(t)[:, None]
    variance = alpha**2 * s**2 + sigma**2 + sigma_min**2
    off = (x - alpha * m) / variance
    target, source = m + alpha * s**2 * off, sigma * off
    velocity = path.alpha_dot(t)[:, None] * target + path.sigma_dot(t)[:, None] * source
    np.testing.assert_allclose(path.noise(velocity, x, t), source, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(path.score(velocity, x, t), -off, rtol=1e-3, atol=1e-5)


def test_the_noise_of_sharp_paths_is_finite_to_the_end():
    x0, x1, _ = triple(3)
    for path in PATHS:
        end = jnp.ones(3)
        noise = path.noise(path.velocity(x0, x1, end), path.interpolate(x0, x1, end), end)
        np.testing.assert_allclose(noise, x0, atol=1e-5)


def test_sigma_min_adds_noise_and_requires_it():
    x0, x1, noise = triple(4)
    t = jnp.array([0.0, 0.5, 1.0])
    sharp, blurred = LinearPath(), LinearPath(sigma_min=0.1)
    np.testing.assert_allclose(
        blurred.interpolate(x0, x1, t, noise), sharp.interpolate(x0, x1, t) + 0.1 * noise, rtol=1e-6
    )
    np.testing.assert_array_equal(blurred.velocity(x0, x1, t), sharp.velocity(x0, x1, t))
    with pytest.raises(InputError, match=r"sigma_min 0\.1"):
        blurred.interpolate(x0, x1, t)


@pytest.mark.parametrize("path", PATHS)
def test_diffusion_forms(path):
    x, t = jnp.zeros((2, 4, 3, 2)), np.array([0.25, 0.8], np.float32)
    alpha, sigma, alpha_dot, sigma_dot = (
        np.asarray(f(jnp.asarray(t))) for f in (path.alpha, path.sigma, path.alpha_dot, path.sigma_dot)
    )
    expected = {
        "constant": 1.3 * np.ones(2),
        "SBDM": 1.3 * (alpha_dot / alpha * sigma**2 - sigma * sigma_dot),
        "sigma": 1.3 * sigma,
        "linear": 1.3 * (1 - t),
        "decreasing": 0.25 * (1.3 * np.cos(np.pi * t) + 1) ** 2,
        "increasing-decreasing": 1.3 * np.sin(np.pi * t) ** 2,
    }
    assert set(expected) == set(DIFFUSION_FORMS)
    for form, value in expected.items():
        found = path.diffusion(x, jnp.asarray(t), form, 1.3)
        assert found.shape == (2, 1, 1, 1)
        np.testing.assert_allclose(found.ravel(), value, rtol=1e-5, err_msg=form)


def test_an_unknown_form_is_refused():
    with pytest.raises(
        InputError, match=r"'brownian' is unknown; expected one of constant, SBDM.*increasing-decreasing"
    ):
        LinearPath().diffusion(jnp.zeros((1, 2)), jnp.zeros(1), "brownian", 1.0)


def test_paths_are_found_by_name():
    assert (make_path("linear"), make_path("gvp")) == (LinearPath(), GVPPath())
    with pytest.raises(InputError, match="'vp' is unknown; expected one of linear, gvp"):
        make_path("vp")


@pytest.mark.parametrize(("name", "path"), [("linear", LinearPath()), ("gvp", GVPPath())])
def test_the_reference_numbers(golden, name, path):
    numbers = golden("flow.npz")
    x0, x1, v, t = (jnp.asarray(numbers[f"in/{key}"]) for key in ("x0", "x1", "v", "t"))
    x = path.interpolate(x0, x1, t)
    assert relative_error(x, numbers[f"{name}/xt"]) < 1e-5
    assert relative_error(path.velocity(x0, x1, t), numbers[f"{name}/ut"]) < 1e-5
    assert relative_error(path.score(v, x, t), numbers[f"{name}/score"]) < 1e-5
    assert relative_error(path.noise(v, x, t), numbers[f"{name}/noise"]) < 1e-5
    for form in DIFFUSION_FORMS:
        expected = np.broadcast_to(numbers[f"{name}/diffusion/{form}"], (2, 1, 1, 1))
        assert relative_error(path.diffusion(x, t, form, 1.3), expected) < 1e-5, form
