"""Checkpoints as they are on disk: without compression; those of earlier versions, which are compressed, are read."""

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from fmboost_jax.data.pipeline import batches
from fmboost_jax.training.checkpoints import Checkpoints
from fmboost_jax.training.state import TrainState
from tests.datasets import write_dataset


def test_arrays_are_written_as_they_are_and_compressed_ones_are_read(tmp_path):
    """zstd is slower than a disk and finds nothing in trained weights; zeros would take almost no room with it."""
    iterator = iter(batches(write_dataset(tmp_path / "data"), batch_size=2, seed=0))
    zeros = jnp.zeros((512, 256)).at[3, 4].set(2.0)
    state = TrainState(jnp.int32(1), {"kernel": zeros}, {"kernel": zeros + 1}, (jnp.int32(3), {"kernel": zeros}))
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), state)

    ours, earlier = (Checkpoints(str(tmp_path / name)) for name in ("ours", "earlier"))
    ours.save(1, state, iterator, {})
    ours.wait()
    with ocp.CheckpointManager(earlier.directory) as manager:
        manager.save(1, args=ocp.args.Composite(state=ocp.args.StandardSave(state.to_dict())))
    earlier.close()
    earlier = Checkpoints(str(tmp_path / "earlier"))
    sizes = [
        sum(path.stat().st_size for path in (tmp_path / name / "checkpoints/1/state").rglob("*") if path.is_file())
        for name in ("ours", "earlier")
    ]
    assert sizes[0] > 3 * zeros.nbytes > 20 * sizes[1]
    for checkpoints in (ours, earlier):
        jax.tree.map(np.testing.assert_array_equal, checkpoints.restore(1, shapes, iterator), state)
        checkpoints.close()
