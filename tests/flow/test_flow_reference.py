"""The method with a network in it, against the reference's numbers."""

import json

import jax
import jax.numpy as jnp
import pytest

from fmboost_jax.flow.guidance import guided
from fmboost_jax.flow.loss import flow_matching_loss
from fmboost_jax.flow.paths import GVPPath, LinearPath
from fmboost_jax.flow.sde import integrate_sde
from fmboost_jax.flow.solvers import integrate, integrate_adaptive
from fmboost_jax.interop import load_unet
from tests.conftest import relative_error


def nhwc(array):
    return jnp.moveaxis(jnp.asarray(array), -3, -1)


@pytest.fixture(scope="module")
def numbers(golden):
    return golden("flow.npz")


@pytest.fixture(autouse=True)
def loops_in_python():
    """The network alone is compiled: a compiled loop would compile it once more for each method."""
    with jax.disable_jit():
        yield


@pytest.fixture(scope="module")
def velocity(numbers):
    """(x, t, context) → velocity of the reference's small UNet, compiled once for all tests."""
    weights = {name.removeprefix("param/"): value for name, value in numbers.items() if name.startswith("param/")}
    config = {key: tuple(v) if isinstance(v, list) else v for key, v in json.loads(str(numbers["config"])).items()}
    unet = load_unet(weights, config)
    program = jax.jit(lambda x, t, context: unet(x, t, context))

    def compiled(x, t, context):
        with jax.disable_jit(False):
            return program(x, t, context)

    return compiled


@pytest.fixture(scope="module")
def flow(numbers, velocity):
    context = nhwc(numbers["in/context"])
    return lambda x, t: velocity(x, t, context)


@pytest.mark.parametrize(("name", "path"), [("linear", LinearPath()), ("gvp", GVPPath())])
def test_loss(numbers, flow, name, path):
    x0, x1, t = nhwc(numbers["in/x0"]), nhwc(numbers["in/x1"]), jnp.asarray(numbers["in/t"])
    loss = flow_matching_loss(flow, path, x0, x1, t)
    assert loss.shape == (2,)
    assert relative_error(loss.mean(), numbers[f"{name}/loss"]) < 1e-5


@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize(("method", "points"), [("euler", 11), ("midpoint", 6), ("heun3", 6), ("rk4", 6)])
def test_ode(numbers, flow, method, points, direction):
    found = integrate(flow, nhwc(numbers["in/x0"]), method=method, steps=points - 1, reverse=direction == "reverse")
    assert relative_error(found, nhwc(numbers[f"ode/{method}/{points}/{direction}"])) < 1e-5


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_adaptive_ode(numbers, flow, direction):
    solution = integrate_adaptive(flow, nhwc(numbers["in/x0"]), rtol=1e-5, atol=1e-6, reverse=direction == "reverse")
    assert solution.reached_end
    assert relative_error(solution.x, nhwc(numbers[f"ode/dopri5/2/{direction}"])) < 1e-4


def test_trajectory(numbers, flow):
    """The reference keeps the first state, every fifth of the inner nine, and the last; here the loop is compiled."""
    with jax.disable_jit(False):
        found = integrate(flow, nhwc(numbers["in/x0"]), method="euler", steps=10, return_trajectory=True)
    assert relative_error(found[jnp.array([0, 1, 6, 10])], nhwc(numbers["ode/euler/11/intermediates_every_5"])) < 1e-5


def test_guidance(numbers, velocity):
    flow = guided(velocity, nhwc(numbers["in/context"]), nhwc(numbers["in/uc"]), 3.0)
    found = integrate(flow, nhwc(numbers["in/x0"]), method="euler", steps=10)
    assert relative_error(found, nhwc(numbers["ode/euler/11/cfg_3"])) < 1e-5


@pytest.mark.parametrize("method", ["euler", "heun"])
def test_sde(numbers, flow, method):
    settings = {"steps": 7, "diffusion": "sigma", "norm": 1.0, "last_step": "Mean", "last_step_size": 0.04}
    x0, noise = nhwc(numbers["in/x0"]), nhwc(numbers[f"sde/{method}/8/noise"])
    found = integrate_sde(flow, x0, noise, path=LinearPath(), method=method, **settings)
    assert relative_error(found, nhwc(numbers[f"sde/{method}/8/out"])) < 1e-5
