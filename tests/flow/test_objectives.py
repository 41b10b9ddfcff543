"""Objectives on a coupling in the plane with a known transport, and their losses by hand.

x0 is uniform on a square, x1 is independent of it and close to one of four points. The straight lines between them
cross, so the flow's marginal velocity bends. Each axis is independent of the other, and in one dimension the flow keeps
the order of its points: it carries every quantile of x0 to the same quantile of x1.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fmboost_jax.errors import InputError
from fmboost_jax.flow.loss import TIME_SAMPLERS, sample_time
from fmboost_jax.flow.meanflow import MeanFlow
from fmboost_jax.flow.objectives import OBJECTIVES, FlowMatching
from fmboost_jax.flow.paths import LinearPath
from fmboost_jax.flow.shortcut import Shortcut
from fmboost_jax.flow.solvers import integrate, integrate_mean_velocity
from fmboost_jax.registry import build

SIDE = 3**0.5  # x0 in [−√3, √3]: variance 1
SPREAD = 0.2
WIDTH, FREQUENCIES = 96, 6


def source(key, count):
    return jax.random.uniform(key, (count, 2), minval=-SIDE, maxval=SIDE)


def target(key, count):
    corner_key, spread_key = jax.random.split(key)
    corners = jnp.where(jax.random.bernoulli(corner_key, shape=(count, 2)), 1.0, -1.0)
    return corners + SPREAD * jax.random.uniform(spread_key, (count, 2), minval=-1.0)


def transport(x0):
    """The quantile of each coordinate among x1's: uniform on [−1.2, −0.8], then on [0.8, 1.2]."""
    quantile = (x0 / SIDE + 1) / 2
    low, high = -1 - SPREAD, 1 - SPREAD
    return np.where(quantile < 0.5, low + 4 * SPREAD * quantile, high + 4 * SPREAD * (quantile - 0.5))


def initial_network(key):
    widths = [2 + 4 * FREQUENCIES, WIDTH, WIDTH, WIDTH, 2]
    keys = jax.random.split(key, len(widths))
    shapes = zip(keys, widths, widths[1:], strict=False)
    return [(jax.random.normal(k, (i, o)) * (2 / i) ** 0.5 * (o > 2), jnp.zeros(o)) for k, i, o in shapes]


def network(layers, x, t, second_time=None):
    def features(time):
        angles = time[:, None] * 2.0 ** jnp.arange(-1, FREQUENCIES - 1)
        return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)

    h = jnp.concatenate([x, features(t), features(jnp.zeros_like(t) if second_time is None else second_time)], axis=-1)
    for weights, bias in layers[:-1]:
        h = jax.nn.silu(h @ weights + bias)
    return h @ layers[-1][0] + layers[-1][1]


@functools.cache
def trained(text, steps=1500, batch=192):
    objective = build("objective", text, OBJECTIVES)
    layers = initial_network(jax.random.key(0))
    optimizer = optax.adam(optax.cosine_decay_schedule(3e-3, steps))

    def update(state, step):
        layers, average, moments = state
        source_key, target_key, loss_key = jax.random.split(jax.random.fold_in(jax.random.key(1), step), 3)
        x0, x1 = source(source_key, batch), target(target_key, batch)

        def loss(layers):
            def velocity(layers, x, t, second_time=None, examples=None):
                return network(layers, x, t, second_time)

            student, teacher = functools.partial(velocity, layers), functools.partial(velocity, average)
            keys = jax.random.split(loss_key, batch)
            return objective.loss(student, LinearPath(), x0, x1, keys, teacher_fn=teacher).mean()

        updates, moments = optimizer.update(jax.grad(loss)(layers), moments)
        layers = optax.apply_updates(layers, updates)
        average = jax.tree.map(lambda old, new: 0.99 * old + 0.01 * new, average, layers)
        return (layers, average, moments), None

    start = (layers, layers, optimizer.init(layers))
    return objective, jax.jit(lambda state: jax.lax.scan(update, state, jnp.arange(steps))[0][1])(start)


def transport_error(text, steps):
    """Root mean square distance from the exact transport; 1 is the distance of x1 from its mean."""
    objective, layers = trained(text)
    x0 = source(jax.random.key(9), 2000)
    if objective.time_inputs == 1:
        found = integrate(functools.partial(network, layers), x0, method="euler", steps=steps)
    else:
        found = integrate_mean_velocity(
            lambda x, t, arrival: network(layers, x, t, objective.second_time(t, arrival)), x0, steps=steps
        )
    return float(np.sqrt(np.mean((np.asarray(found) - transport(np.asarray(x0))) ** 2)))


@pytest.mark.parametrize(("text", "limit"), [("shortcut", 0.4), ("meanflow(power=0.5)", 0.55)])
def test_one_step_reaches_the_target_where_the_plain_flow_does_not(text, limit):
    assert transport_error("flow", 1) > 0.9
    assert transport_error(text, 1) < limit


@pytest.mark.parametrize(
    ("text", "limits"),
    [
        ("flow", {4: 0.45, 64: 0.25}),
        ("flow(time='logit_normal')", {64: 0.3}),
        ("shortcut", {2: 0.4, 4: 0.35, 64: 0.25}),
        ("meanflow(power=0.5)", {2: 0.5, 4: 0.45, 64: 0.45}),
    ],
)
def test_more_steps_reach_the_target_too(text, limits):
    found = {steps: transport_error(text, steps) for steps in limits}
    assert all(found[steps] < limit for steps, limit in limits.items()), found


def test_shortcut_targets_by_hand():
    """A teacher of 2 everywhere: the first of every four examples regresses 2, the others x1 − x0 = 3."""
    x0, x1 = jnp.zeros((8, 2)), jnp.full((8, 2), 3.0)
    asked = []

    def student(x, t, second_time, examples=None):
        asked.append((np.asarray(t), np.asarray(second_time)))
        return jnp.zeros_like(x)

    def teacher(x, t, second_time, examples=None):
        assert examples == slice(0, 8, 4)
        return jnp.full_like(x, 2.0)

    keys = jax.random.split(jax.random.key(0), 8)
    loss = Shortcut().loss(student, LinearPath(), x0, x1, keys, teacher_fn=teacher)
    np.testing.assert_allclose(loss, [4, 9, 9, 9, 4, 9, 9, 9])
    ((t, size),) = asked
    np.testing.assert_allclose(size[[1, 2, 3, 5, 6, 7]], 1)
    step = 64.0 ** -size[[0, 4]]
    assert (step >= 1 / 32 - 1e-6).all()
    np.testing.assert_allclose(t[[0, 4]] / step, np.round(t[[0, 4]] / step), atol=1e-4)
    assert (t + 64.0**-size <= 1 + 1 / 64).all()


def test_the_exact_mean_velocity_has_no_meanflow_loss():
    """For a coupling without crossings, x1 = a x0, the velocity and its mean follow from x_t = (1 − t + t a) x0."""
    a = 3.0
    x0 = source(jax.random.key(0), 16)

    def exact(x, t, interval):
        return (a - 1) * x / (1 - t + t * a)[:, None]

    keys = jax.random.split(jax.random.key(1), 16)
    np.testing.assert_allclose(MeanFlow(power=0.0).loss(exact, LinearPath(), x0, a * x0, keys), 0, atol=1e-9)

    def half(x, t, interval):
        return 0.5 * exact(x, t, interval)

    assert (MeanFlow(power=0.0).loss(half, LinearPath(), x0, a * x0, keys) > 1e-3).all()


def test_the_plain_flow_draws_the_times_of_its_keys():
    keys = jax.random.split(jax.random.key(0), 5)
    asked = []

    def velocity(x, t):
        asked.append(t)
        return x

    FlowMatching().loss(velocity, LinearPath(), jnp.zeros((5, 2)), jnp.ones((5, 2)), keys)
    np.testing.assert_array_equal(asked[0], sample_time(keys))


def test_sigma_min_adds_noise_to_the_networks_input():
    keys, seen = jax.random.split(jax.random.key(0), 4000), []

    def velocity(x, t):
        seen.append(np.asarray(x))
        return x

    FlowMatching().loss(velocity, LinearPath(sigma_min=0.5), jnp.zeros((4000, 2)), jnp.zeros((4000, 2)), keys)
    assert seen[0].std() == pytest.approx(0.5, rel=0.05)


@pytest.mark.parametrize(("mean", "deviation"), [(0.0, 1.0), (1.0, 0.5)])
def test_logit_normal_times(mean, deviation):
    t = np.asarray(
        TIME_SAMPLERS["logit_normal"](mean, deviation)(jax.random.split(jax.random.key(0), 4000)), np.float64
    )
    logits = np.log(t / (1 - t))
    assert (logits.mean(), logits.std()) == (pytest.approx(mean, abs=0.06), pytest.approx(deviation, rel=0.06))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("shortcut(smallest=48)", "power of two"),
        ("shortcut(bootstrap=0.3)", "1 over a whole number"),
        ("meanflow(instantaneous=1.0)", r"in \[0, 1\)"),
        ("flow(time='sometimes')", "time distribution 'sometimes' is unknown; expected one of uniform, logit_normal"),
        ("diffusion", "objective 'diffusion' is unknown; expected one of flow, shortcut, meanflow"),
    ],
)
def test_impossible_settings_are_refused(text, message):
    with pytest.raises(InputError, match=message):
        build("objective", text, OBJECTIVES)


def test_a_shortcut_refuses_unsupported_steps_and_batches():
    for steps in (1, 2, 64):
        Shortcut().check_steps(steps)
    for steps in (0, 3, 128):
        with pytest.raises(InputError, match=f"a power of two from 1 to 64 .*found {steps}"):
            Shortcut().check_steps(steps)
    with pytest.raises(InputError, match="a batch of 6 must be a multiple of 4"):
        Shortcut().loss(
            network, LinearPath(), jnp.zeros((6, 2)), jnp.zeros((6, 2)), jax.random.split(jax.random.key(0), 6)
        )
