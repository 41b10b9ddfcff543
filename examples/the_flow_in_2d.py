# %% [markdown]
# # The flow alone, in two dimensions
#
# The method without images: a small network learns the velocity from Gaussian noise to two moons. It takes a
# minute on a CPU.

# %%
import os

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import optax
from sklearn.datasets import make_moons

from fmboost_jax.flow.objectives import FlowMatching
from fmboost_jax.flow.paths import LinearPath
from fmboost_jax.flow.solvers import integrate

SMALL = "FMBOOST_SMALL" in os.environ  # set where this notebook is tested
UPDATES = 150 if SMALL else 5000

# %%
moons = jnp.asarray(make_moons(4096, noise=0.05, random_state=0)[0], jnp.float32)


def init(key, sizes=(3, 128, 128, 2)):
    """Weights and biases of a network (x, y, t) → velocity."""
    keys = jax.random.split(key, len(sizes) - 1)
    return [
        (jax.random.normal(key, (n, m)) / n**0.5, jnp.zeros(m))
        for key, n, m in zip(keys, sizes[:-1], sizes[1:], strict=True)
    ]


def velocity(parameters, x, t):
    """The network."""
    h = jnp.concatenate([x, t[:, None]], axis=-1)
    for weights, bias in parameters[:-1]:
        h = jax.nn.silu(h @ weights + bias)
    weights, bias = parameters[-1]
    return h @ weights + bias


# %% [markdown]
# One update: x0 is noise, x1 are points of the moons, the target is the path's velocity.

# %%
optimizer = optax.adam(2e-3)


@jax.jit
def update(parameters, state, key):
    """One step of Adam on a batch of 256."""
    choice, noise, times = jax.random.split(key, 3)
    x1 = moons[jax.random.randint(choice, (256,), 0, len(moons))]
    x0 = jax.random.normal(noise, x1.shape)

    def loss(parameters):
        network = lambda x, t: velocity(parameters, x, t)  # noqa: E731
        return FlowMatching().loss(network, LinearPath(), x0, x1, jax.random.split(times, 256)).mean()

    value, gradient = jax.value_and_grad(loss)(parameters)
    change, state = optimizer.update(gradient, state)
    return optax.apply_updates(parameters, change), state, value


parameters = init(jax.random.key(0))
state = optimizer.init(parameters)
losses = []
for step in range(UPDATES):
    parameters, state, value = update(parameters, state, jax.random.key(step + 1))
    losses.append(float(value))

# %% [markdown]
# Sampling integrates the velocity from t = 0 to t = 1. With more steps the moons become sharper.

# %%
start = jax.random.normal(jax.random.key(7), (1000, 2))
figure, axes = plt.subplots(1, 4, figsize=(16, 4), sharex=True, sharey=True)
for axis, steps in zip(axes, (1, 2, 4, 20), strict=True):
    points = integrate(lambda x, t: velocity(parameters, x, t), start, method="euler", steps=steps)
    axis.scatter(*points.T, s=2)
    axis.set_title(f"{steps} steps")
