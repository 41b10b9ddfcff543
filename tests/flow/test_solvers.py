"""Fixed-grid integration: measured orders, comparison with torchdiffeq, one compiled loop, guidance."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torchdiffeq

from fmboost_jax.errors import InputError
from fmboost_jax.flow.guidance import guided
from fmboost_jax.flow.solvers import ADAPTIVE, FIXED_GRID, GRIDS, METHODS, Solver, evaluations, integrate

QUARTER_TURN = jnp.array([[0.0, -1.0], [1.0, 0.0]])
START = np.array([[1.0, 0.3], [-0.4, 2.0]])


def swirl(x, t):
    """Rotation at the changing rate 5 cos 2t + 4."""
    return (5 * jnp.cos(2 * t) + 4)[:, None] * (x @ QUARTER_TURN.T)


def after_swirling(x):
    angle = 2.5 * np.sin(2) + 4
    return x @ np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]).T


def counted(velocity_fn):
    """A velocity function and the list to which each of its evaluations (not its traces) appends."""
    calls = []

    def counting(x, t):
        jax.debug.callback(lambda: calls.append(1))
        return velocity_fn(x, t)

    return counting, calls


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("midpoint", 2), ("heun", 2), ("heun3", 3), ("rk4", 4)])
def test_the_order_of_convergence(method, order, reverse):
    assert FIXED_GRID[method].order == order
    start, end = (after_swirling(START), START) if reverse else (START, after_swirling(START))

    def error(steps):
        found = integrate(swirl, jnp.asarray(start, jnp.float32), method=method, steps=steps, reverse=reverse)
        return np.linalg.norm(found - end)

    steps = 800 if method == "euler" else 32
    assert np.log2(error(steps) / error(2 * steps)) == pytest.approx(order, abs=0.1)


@pytest.mark.parametrize("method", FIXED_GRID)
def test_tableaus_meet_the_order_conditions(method):
    """Hairer, Nørsett, Wanner, table II.2.2: one condition for each rooted tree up to the order."""
    tableau = FIXED_GRID[method]
    a, b, c = tableau.matrix, np.asarray(tableau.b), tableau.c
    conditions = {
        1: [(b.sum(), 1)],
        2: [(b @ c, 1 / 2)],
        3: [(b @ c**2, 1 / 3), (b @ a @ c, 1 / 6)],
        4: [(b @ c**3, 1 / 4), ((b * c) @ a @ c, 1 / 8), (b @ a @ c**2, 1 / 12), (b @ a @ a @ c, 1 / 24)],
    }
    for order in range(1, tableau.order + 1):
        for found, expected in conditions[order]:
            assert found == pytest.approx(expected, abs=1e-6)
    assert all(len(row) == i for i, row in enumerate(tableau.a))


@pytest.mark.parametrize(
    ("method", "c"), [("dopri5", [0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1, 1]), ("bosh3", [0, 1 / 2, 3 / 4, 1])]
)
def test_the_last_slope_of_an_embedded_pair_is_the_next_steps_first(method, c):
    pair = ADAPTIVE[method]
    assert pair.a[-1] == pair.b[:-1]
    assert pair.b[-1] == 0
    assert sum(pair.embedded) == pytest.approx(1)
    np.testing.assert_allclose(pair.c, c, atol=1e-6)


@pytest.mark.parametrize("grid", ["uniform", "shifted", "shifted(shift=1.0)", "shifted(shift=0.3)"])
@pytest.mark.parametrize("method", ["rk4", "bosh3"])
def test_every_grid_converges_to_the_same_solution(method, grid):
    found = integrate(swirl, jnp.asarray(START, jnp.float32), method=method, steps=100, grid=grid)
    np.testing.assert_allclose(found, after_swirling(START), atol=1e-3)


def test_a_shifted_grid_takes_small_steps_first():
    """Esser et al. 2024, equation 23, at t = 1/2: 1 − 3 · 0.5 / (1 + 2 · 0.5) = 0.25."""
    np.testing.assert_allclose(GRIDS["shifted"](shift=3.0)(2), [0, 0.25, 1])
    np.testing.assert_allclose(GRIDS["shifted"](shift=1.0)(4), GRIDS["uniform"]()(4))


def test_a_solver_integrates_as_the_function_does():
    x = jnp.asarray(START, jnp.float32)
    for solver in (Solver(), Solver("midpoint", 3, "shifted(shift=2.0)"), Solver("bosh3", 2, rtol=1e-3)):
        expected = integrate(swirl, x, **dataclasses.asdict(solver), return_trajectory=True)
        np.testing.assert_array_equal(solver.integrate(swirl, x, return_trajectory=True), expected)
    assert Solver("midpoint", 3).evaluations == 6


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "rk45"}, "method 'rk45' is unknown"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"grid": "log"}, "grid 'log' is unknown; expected one of uniform, shifted"),
        ({"grid": "shifted(shift=-1.0)"}, "shift must be above 0"),
        ({"rtol": 0.0}, "rtol and atol must be above 0"),
        ({"max_steps": 0}, "max_steps must be at least 1"),
    ],
)
def test_a_solver_refuses_impossible_settings(settings, message):
    with pytest.raises(InputError, match=message):
        Solver(**settings)


WEIGHTS = np.random.default_rng(0).standard_normal((12, 12)).astype(np.float32) / 2


def mixing(x, t):
    return jnp.tanh(x.reshape(len(x), -1) @ WEIGHTS + t[:, None]).reshape(x.shape) * 2


def mixing_in_torch(t, x):
    return torch.tanh(x.reshape(len(x), -1) @ torch.from_numpy(WEIGHTS) + t).reshape(x.shape) * 2


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_trajectories_agree_with_torchdiffeq(method, reverse):
    x = np.random.default_rng(1).standard_normal((3, 2, 2, 3)).astype(np.float32)
    times = torch.linspace(0, 1, 6)
    expected = torchdiffeq.odeint(
        mixing_in_torch,
        torch.from_numpy(x),
        times.flip(0) if reverse else times,
        method="heun2" if method == "heun" else method,
        rtol=1e-6,
        atol=1e-7,
    ).numpy()
    settings = {"method": method, "steps": 5, "reverse": reverse, "rtol": 1e-6, "atol": 1e-7}
    trajectory = integrate(mixing, jnp.asarray(x), return_trajectory=True, **settings)
    np.testing.assert_allclose(trajectory, expected, atol={"dopri5": 2e-5, "bosh3": 2e-4}.get(method, 5e-6))
    np.testing.assert_array_equal(integrate(mixing, jnp.asarray(x), **settings), trajectory[-1])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("steps", [2, 50])
def test_the_program_holds_the_network_once(method, steps):
    traces = []

    def velocity_fn(x, t):
        traces.append((x.shape, t.shape, t.dtype))
        return swirl(x, t)

    jax.jit(lambda x: integrate(velocity_fn, x, method=method, steps=steps)).lower(jnp.zeros((2, 2)))
    assert traces == [((2, 2), (2,), jnp.float32)]


@pytest.mark.parametrize(("method", "each"), [("euler", 1), ("midpoint", 2), ("heun", 2), ("heun3", 3), ("rk4", 4)])
def test_evaluations_are_the_number_of_calls(method, each):
    velocity_fn, calls = counted(swirl)
    integrate(velocity_fn, jnp.zeros((1, 2)), method=method, steps=3).block_until_ready()
    jax.effects_barrier()
    assert len(calls) == evaluations(method, 3) == 3 * each


def test_time_runs_from_0_at_the_source_to_1_at_the_target():
    """Euler on dx/dt = t in 4 steps: the left ends (0 + ¼ + ½ + ¾) / 4, and backwards −(1 + ¾ + ½ + ¼) / 4."""

    def clock(x, t):
        return jnp.broadcast_to(t[:, None], x.shape)

    zero = jnp.zeros((2, 1))
    np.testing.assert_allclose(integrate(clock, zero, method="euler", steps=4), 0.375)
    np.testing.assert_allclose(integrate(clock, zero, method="euler", steps=4, reverse=True), -0.625)
    forward = integrate(clock, zero, method="euler", steps=4, return_trajectory=True)
    np.testing.assert_allclose(forward[:, 0, 0], [0, 0, 0.0625, 0.1875, 0.375])


def test_straight_flows_need_one_step():
    """Where the velocity is x1 − x0 all along, every method is exact at once."""
    x0, x1 = jax.random.normal(jax.random.key(0), (2, 2, 4, 4, 3))
    for method in METHODS:
        found = integrate(lambda x, t: x1 - x0, x0, method=method, steps=1)
        np.testing.assert_allclose(found, x1, atol=1e-5)


def test_the_state_is_float32_for_every_input_type():
    def half(x, t):
        assert (x.dtype, t.dtype) == (jnp.float32, jnp.float32)
        return x.astype(jnp.bfloat16)

    for method in METHODS:
        found = integrate(half, jnp.ones((1, 2), jnp.float16), method=method, steps=2)
        assert found.dtype == jnp.float32


def test_a_flow_can_be_differentiated_through():
    """d/dx of the rotation is the rotation."""
    jacobian = jax.jacrev(lambda x: integrate(swirl, x[None], method="rk4", steps=64)[0])(jnp.array([1.0, 0.3]))
    np.testing.assert_allclose(jacobian, after_swirling(np.eye(2)).T, atol=1e-4)


@pytest.mark.parametrize("steps", [0, -3])
@pytest.mark.parametrize("method", METHODS)
def test_fewer_than_one_step_is_refused(method, steps):
    with pytest.raises(InputError, match=f"steps must be at least 1, found {steps}"):
        integrate(swirl, jnp.zeros((1, 2)), method=method, steps=steps)


def test_an_unknown_method_lists_the_known_ones():
    for call in (
        lambda: integrate(swirl, jnp.zeros((1, 2)), method="rk45", steps=1),
        lambda: evaluations("rk45", 1),
    ):
        with pytest.raises(
            InputError, match="'rk45' is unknown; expected one of euler, midpoint, heun, heun3, rk4, dopri5, bosh3"
        ):
            call()
    with pytest.raises(InputError, match="integrate_adaptive reports it"):
        evaluations("dopri5", 1)


def test_a_velocity_of_another_shape_is_not_broadcast():
    with pytest.raises(InputError, match=r"velocity has shape \(2, 4, 4, 1\), expected the state's \(2, 4, 4, 3\)"):
        integrate(lambda x, t: x[..., :1], jnp.zeros((2, 4, 4, 3)), method="euler", steps=1)


def conditioned(x, t, conditioning):
    return x * conditioning["scale"][:, None] + conditioning["offset"]["value"] * t[:, None]


GIVEN = {"scale": jnp.array([1.0, 2.0, 3.0]), "offset": {"value": jnp.arange(6.0).reshape(3, 2)}}
WITHOUT = {"scale": jnp.array([0.5]), "offset": {"value": jnp.full((3, 2), -1.0)}}


@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0])
def test_guidance_is_two_networks_in_one_call(scale):
    calls = []

    def velocity_fn(x, t, conditioning):
        calls.append((x.shape, t.shape, conditioning["scale"].shape))
        return conditioned(x, t, conditioning)

    x, t = jax.random.normal(jax.random.key(2), (3, 2)), jnp.array([0.1, 0.5, 0.8])
    found = guided(velocity_fn, GIVEN, WITHOUT, scale)(x, t)
    assert calls == [((6, 2), (6,), (6,))]
    alone = {"scale": jnp.full(3, 0.5), "offset": WITHOUT["offset"]}
    v_c, v_u = conditioned(x, t, GIVEN), conditioned(x, t, alone)
    np.testing.assert_allclose(found, v_u + scale * (v_c - v_u), rtol=1e-5, atol=1e-6)


def test_guidance_scale_may_be_traced():
    x = jax.random.normal(jax.random.key(3), (3, 2))

    @jax.jit
    def sample(scale):
        return integrate(guided(conditioned, GIVEN, WITHOUT, scale), x, method="euler", steps=3)

    expected = integrate(lambda x, t: conditioned(x, t, GIVEN), x, method="euler", steps=3)
    np.testing.assert_allclose(sample(1.0), expected, rtol=1e-5)


def test_guidance_refuses_conditionings_that_do_not_match():
    with pytest.raises(InputError, match=r"shape \(2,\), expected \(3,\) or batch 1"):
        guided(conditioned, GIVEN, WITHOUT | {"scale": jnp.ones(2)}, 3.0)
    with pytest.raises(InputError, match="differ in structure"):
        guided(conditioned, GIVEN, {"scale": jnp.ones(1)}, 3.0)
