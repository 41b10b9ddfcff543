"""Stochastic sampling: a Gaussian case with a known result, and each rule against its formula."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmboost_jax.errors import InputError
from fmboost_jax.flow.paths import DIFFUSION_FORMS, GVPPath, LinearPath
from fmboost_jax.flow.sde import LAST_STEPS, METHODS, integrate_sde
from fmboost_jax.flow.solvers import integrate

MEAN, SPREAD = 0.8, 0.5
PATHS = {"linear": LinearPath(), "gvp": GVPPath()}


def towards_a_gaussian(path):
    """The marginal velocity from N(0, 1) to N(MEAN, SPREAD²)."""

    def velocity_fn(x, t):
        t = t[:, None]
        alpha, sigma = path.alpha(t), path.sigma(t)
        off = (x - alpha * MEAN) / (alpha**2 * SPREAD**2 + sigma**2)
        return path.alpha_dot(t) * (MEAN + alpha * SPREAD**2 * off) + path.sigma_dot(t) * sigma * off

    return velocity_fn


def draw(batch, steps, seed=0):
    start, along = jax.random.split(jax.random.key(seed))
    return jax.random.normal(start, (batch, 1)), jax.random.normal(along, (steps, batch, 1))


@pytest.mark.parametrize(
    ("form", "method", "path"),
    [*itertools.product(DIFFUSION_FORMS, METHODS, ["linear"]), ("sigma", "euler", "gvp"), ("SBDM", "heun", "gvp")],
)
def test_the_marginal_is_that_of_the_path(form, method, path):
    """Whatever the diffusion, N(0, 1) arrives at N(MEAN, SPREAD²), less the 2w · 0.005 of variance of the last step."""
    steps, path = 250, PATHS[path]
    x, noise = draw(8000, steps)
    x = integrate_sde(
        towards_a_gaussian(path), x, noise, path=path, method=method, steps=steps, diffusion=form, last_step_size=0.005
    )
    assert float(x.mean()) == pytest.approx(MEAN, abs=0.03)
    assert float(x.std()) == pytest.approx(SPREAD, abs=0.03)


@pytest.mark.parametrize("method", METHODS)
def test_the_sde_decorrelates_from_x0_and_the_ode_does_not(method):
    """With w = 4σ, x1 hardly correlates with x0; with w = 0 it correlates fully."""
    path = LinearPath()
    x, noise = draw(4000, 100)

    def correlation(norm):
        end = integrate_sde(towards_a_gaussian(path), x, noise, path=path, method=method, steps=100, norm=norm)
        return np.corrcoef(x[:, 0], end[:, 0])[0, 1]

    assert correlation(0.0) == pytest.approx(1, abs=1e-4)
    assert abs(correlation(4.0)) < 0.2


@pytest.mark.parametrize("method", METHODS)
def test_without_diffusion_it_is_the_ode(method):
    path = LinearPath()
    x, noise = draw(5, 10)
    velocity_fn = towards_a_gaussian(path)
    found = integrate_sde(
        velocity_fn, x, noise, path=path, method=method, steps=10, norm=0.0, last_step=None, last_step_size=0.5
    )
    # The first half of the way at half the pace.
    halved = integrate(lambda x, t: velocity_fn(x, t / 2) / 2, x, method=method, steps=10)
    np.testing.assert_allclose(found, halved, rtol=1e-5)


@pytest.mark.parametrize("path", PATHS)
def test_two_steps_of_each_method_by_hand(path):
    """The recurrences written out in numpy, with the last step "Mean"."""
    path, norm, last = PATHS[path], 0.7, 0.1
    x0, noise = draw(6, 2)
    velocity_fn = towards_a_gaussian(path)

    def w(t):
        return norm * float(path.sigma(jnp.float32(t)))

    def drift(x, t):
        times = jnp.full(len(x), t, jnp.float32)
        v = velocity_fn(jnp.asarray(x, jnp.float32), times)
        return np.asarray(v + w(t) * path.score(v, jnp.asarray(x, jnp.float32), times))

    h = 0.45
    for method in METHODS:
        x = np.asarray(x0)
        for n, t in enumerate((0.0, h)):
            kick = np.sqrt(2 * w(t) * h) * np.asarray(noise[n])
            if method == "euler":
                x = x + h * drift(x, t) + kick
            else:
                first = drift(x + kick, t)
                x = x + kick + h / 2 * (first + drift(x + kick + h * first, t + h))
        x = x + last * drift(x, 0.9)
        found = integrate_sde(
            velocity_fn, x0, noise, path=path, method=method, steps=2, diffusion="sigma", norm=norm, last_step_size=last
        )
        np.testing.assert_allclose(found, x, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("path", PATHS)
def test_last_steps_start_from_the_same_state(path):
    path, size = PATHS[path], 0.2
    x, noise = draw(6, 4)
    velocity_fn = towards_a_gaussian(path)
    ends = {
        rule: integrate_sde(
            velocity_fn, x, noise, path=path, method="euler", steps=4, last_step=rule, last_step_size=size
        )
        for rule in LAST_STEPS
    }
    state, t = ends[None], jnp.full(6, 1 - size)
    v = velocity_fn(state, t)
    np.testing.assert_allclose(ends["Euler"], state + size * v, rtol=1e-5)
    drift = v + path.diffusion(state, t, "sigma", 1.0) * path.score(v, state, t)
    np.testing.assert_allclose(ends["Mean"], state + size * drift, rtol=1e-5)
    alpha, sigma = path.alpha(t)[:, None], path.sigma(t)[:, None]
    target = MEAN + alpha * SPREAD**2 * (state - alpha * MEAN) / (alpha**2 * SPREAD**2 + sigma**2)
    np.testing.assert_allclose(ends["Tweedie"], target, rtol=1e-4)


def test_euler_maruyama_can_end_at_one():
    path = LinearPath()
    x, noise = draw(6, 5)
    found = integrate_sde(
        towards_a_gaussian(path), x, noise, path=path, method="euler", steps=5, last_step=None, last_step_size=0.0
    )
    assert np.isfinite(found).all()


@pytest.mark.parametrize(("method", "traces"), [("euler", 2), ("heun", 2)])
def test_the_network_is_traced_once_for_the_loop_and_once_for_the_last_step(method, traces):
    found = []

    def velocity_fn(x, t):
        found.append(t.shape)
        return -x

    x, noise = draw(3, 40)
    integrate_sde(velocity_fn, x, noise, path=LinearPath(), method=method, steps=40)
    assert found == [(3,)] * traces


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"method": "milstein"}, "'milstein' is unknown; expected one of euler, heun"),
        ({"last_step": "mean"}, "'mean' is unknown; expected one of Mean, Tweedie, Euler, None"),
        ({"diffusion": "none"}, "'none' is unknown; expected one of constant"),
        ({"steps": 0}, "steps must be at least 1, found 0"),
        ({"steps": 5}, r"noise has shape \(4, 2, 1\), expected \(5, 2, 1\)"),
        ({"last_step_size": 0.0}, "last_step_size must be above 0"),
        ({"last_step_size": 1.0}, r"below 1, found 1\.0"),
        ({"last_step_size": 0.0, "last_step": None, "method": "heun"}, "last_step_size must be above 0"),
    ],
)
def test_bad_settings_are_refused(wrong, message):
    x, noise = draw(2, 4)
    with pytest.raises(InputError, match=message):
        integrate_sde(lambda x, t: x, x, noise, **{"path": LinearPath(), "method": "euler", "steps": 4} | wrong)
