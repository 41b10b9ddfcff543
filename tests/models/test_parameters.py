"""Parameters of a module: the keys that draw them."""

import jax
import numpy as np
import pytest
from flax import nnx

from fmboost_jax.models.parameters import fresh_keys


@pytest.mark.parametrize("seed", [3, jax.random.key(3)])
def test_fresh_keys_are_those_of_flax(seed):
    def draw(keys):
        return [jax.random.key_data(key) for key in (keys.params(), keys.params(), keys.dropout(), keys())]

    found, traced = draw(fresh_keys(seed)), jax.jit(lambda: draw(fresh_keys(seed)))()
    np.testing.assert_array_equal(found, draw(nnx.Rngs(seed)))
    np.testing.assert_array_equal(traced, found)
