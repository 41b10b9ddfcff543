"""Functions of batches applied to any number of examples."""

import jax.numpy as jnp
import numpy as np
import pytest

from fmboost_jax.errors import InputError
from fmboost_jax.parallel.batching import data_parallel, map_batches
from fmboost_jax.parallel.mesh import make_mesh


@pytest.mark.parametrize(("count", "size", "multiple", "expected"), [(5, 2, 1, 2), (3, 4, 1, 4), (7, 2, 3, 3)])
def test_all_parts_have_one_size_and_the_copies_are_dropped(count, size, multiple, expected):
    sizes = []

    def function(left, right):
        sizes.append(len(left))
        return {"sum": left + right, "left": jnp.asarray(left)}

    left, right = np.arange(count), 10 * np.arange(count)
    result = map_batches(function, [left, right], size, multiple=multiple)
    assert set(sizes) == {expected}
    np.testing.assert_array_equal(result["sum"], left + right)
    np.testing.assert_array_equal(result["left"], left)
    assert isinstance(result["sum"], np.ndarray)
    assert not isinstance(result["left"], np.ndarray)


def test_a_batch_size_below_one_is_refused():
    with pytest.raises(InputError, match="batch_size must be 1 or more, found 0"):
        map_batches(lambda x: x, [np.arange(3)], 0)


def test_every_device_gets_its_share():
    images = np.arange(11, dtype=np.float32)
    shares = []

    def function(scale, part):
        shares.append({shard.data.shape for shard in part.addressable_shards})
        return scale * part

    mesh = make_mesh({"data": -1, "fsdp": 1, "spatial": 1})
    apply = data_parallel(function, jnp.float32(3), mesh, batch_size=8)
    np.testing.assert_array_equal(apply(images), 3 * images)
    assert all(shapes == {(8 // mesh.shape["data"],)} for shapes in shares)
