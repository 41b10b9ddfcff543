"""The decay of the exponential moving average."""

import jax
import jax.numpy as jnp
import numpy as np

from fmboost_jax.training.ema import ema_decay, update_ema


def test_decay_by_hand():
    decay = [float(ema_decay(n, decay=0.9, copy_until=2)) for n in range(1, 60)]
    assert decay[:4] == [0, 0, 0, 0]
    np.testing.assert_allclose(decay[4], 1 - 3**-0.75, rtol=1e-6)
    np.testing.assert_allclose(decay[5], 1 - 4**-0.75, rtol=1e-6)
    assert decay[-1] == np.float32(0.9)


def test_the_sequence_agrees_with_the_reference(golden):
    numbers = golden("source_ema_resize.npz")
    online = jnp.asarray(numbers["ema/.../online"], jnp.float32)

    def update(average, step):
        average = update_ema(average, online[step], step + 1, decay=0.999, copy_until=1000)
        return average, average

    _, found = jax.lax.scan(update, online[0], jnp.arange(len(online)))
    np.testing.assert_allclose(found, numbers["ema/beta0.999_after1000_every1/value"], atol=1e-6)
    after = [float(ema_decay(n, decay=0.999, copy_until=1000)) for n in (1003, 1100, 2000, 3000)]
    expected = numbers["ema/beta0.999_after1000_every1/decay_after_update"][[1002, 1099, 1999, 2999]]
    np.testing.assert_allclose(after, expected, rtol=1e-5)
