"""The optimiser: optax's Adam in numbers and state, skipped non-finite updates, few passes over memory."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fmboost_jax.configuration import read_config
from fmboost_jax.training.config import TrainingConfig
from fmboost_jax.training.optimizer import global_norm, learning_rate, make_optimizer
from fmboost_jax.training.state import TrainState


def optim(*overrides):
    return read_config("demo.py", overrides, TrainingConfig).optim


@pytest.mark.parametrize("clip_norm", [0.0, 1.0])
@pytest.mark.parametrize("warmup_steps", [0, 10])
def test_updates_agree_with_optaxs_adam(clip_norm, warmup_steps):
    config = optim(f"--config.optim.clip_norm={clip_norm}", f"--config.optim.warmup_steps={warmup_steps}")
    expected = optax.adam(learning_rate(config), b1=config.b1, b2=config.b2, eps=config.eps)
    if clip_norm:
        expected = optax.chain(optax.clip_by_global_norm(clip_norm), expected)
    ours = make_optimizer(config)
    shapes = {"kernel": (32, 32), "bias": (32,), "convolution": (3, 3, 4, 8)}
    parameters = {name: jax.random.normal(jax.random.key(0), shape) for name, shape in shapes.items()}
    state, theirs, found, wanted = ours.init(parameters), expected.init(parameters), parameters, parameters
    update, twin = jax.jit(ours.update), jax.jit(expected.update)
    for step in range(30):
        # Norms on both sides of the limit.
        keys = dict(zip(parameters, jax.random.split(jax.random.key(step), len(shapes)), strict=True))
        size = 10.0 if step % 2 else 0.01
        gradient = {name: size * jax.random.normal(keys[name], array.shape) for name, array in parameters.items()}
        updates, state = update(gradient, state, found, finite=jnp.array(True))
        found = optax.apply_updates(found, updates)
        updates, theirs = twin(gradient, theirs, wanted)
        wanted = optax.apply_updates(wanted, updates)
    assert jax.tree.structure(state) == jax.tree.structure(theirs)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-7), (found, state), (wanted, theirs))
    assert np.abs(found["kernel"] - parameters["kernel"]).max() > 1e-3


def test_the_state_is_unchanged_where_the_gradient_is_not_finite():
    optimizer = make_optimizer(optim())
    parameters = {"kernel": jnp.ones((4, 4))}
    state = optimizer.init(parameters)
    for finite, entry in ((True, 0.5), (False, jnp.nan)):
        before, gradient = state, {"kernel": jnp.full((4, 4), entry)}
        _, state = jax.jit(optimizer.update)(gradient, state, parameters, finite=jnp.array(finite))
        same = jax.tree.map(lambda a, b: bool(jnp.array_equal(a, b)), state, before)
        assert all(jax.tree.leaves(same)) is not finite


@pytest.mark.parametrize(("takes_in", "passes"), [("before", 16), ("after", 14)])
def test_an_update_reads_and_writes_14_times_the_parameters(takes_in, passes):
    """The norm reads 1; each moment reads 2 and writes 1, the parameters 3 and 1, the average 2 and 1: 14 in all.

    An average of the parameters before the update copies them: 2 more.
    """
    config = read_config("demo.py", [f"--config.ema.takes_in={takes_in}"], TrainingConfig)
    optimizer, size = make_optimizer(config.optim), 4 * 2**18
    parameters = {"kernel": jnp.ones((512, 512))}
    state = TrainState.create(parameters, optimizer)

    def update(state, gradient):
        return state.apply_gradient(jnp.zeros(()), gradient, optimizer, config.ema)

    compiled = jax.jit(update, donate_argnums=0).lower(state, parameters).compile()
    assert compiled.cost_analysis()["bytes accessed"] / size < passes + 0.1


def test_the_norm_shares_no_squares_with_adam():
    """Shared squares would take as much memory as the gradient."""

    def update(moment, x, incoming):
        gradient = (x.T @ incoming).reshape(3, 3, 512, 512)
        return 0.99 * moment + 0.01 * jnp.square(gradient), global_norm({"kernel": gradient})

    x, incoming = (jax.random.normal(jax.random.key(seed), (32, width)) for seed, width in ((0, 9 * 512), (1, 512)))
    moment = jnp.zeros((3, 3, 512, 512))
    compiled = jax.jit(update, donate_argnums=0).lower(moment, x, incoming).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 1.1 * moment.nbytes
    moment, norm = compiled(moment, x, incoming)
    np.testing.assert_allclose(norm, np.sqrt(np.sum(np.asarray(moment, np.float64) / 0.01)), rtol=1e-6)


def test_the_rate_falls_to_zero_along_a_cosine():
    """After the warm-up: half of it in the middle, none at the end; without decay it stays."""
    decaying = optim("--config.optim.lr=0.1", "--config.optim.warmup_steps=10", "--config.optim.decay_steps=100")
    rate = learning_rate(decaying)
    assert float(rate(0)) == 0
    assert [float(rate(step)) for step in (50, 100, 130)] == pytest.approx([0.05, 0, 0], abs=1e-8)
    assert all(float(rate(step)) > float(rate(step + 1)) for step in range(10, 100))
    assert float(learning_rate(optim("--config.optim.lr=0.1"))(10_000)) == pytest.approx(0.1)
