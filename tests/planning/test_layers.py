"""Cycles of single layers, as the benchmark for TPUs compiles them."""

import pytest

pytest.importorskip("libtpu")

from bench.tpu import cycles, enlarging, residual_block
from fmboost_jax.planning.topologies import tpu_slice


@pytest.mark.parametrize("layer", [residual_block(256), enlarging(64), enlarging(64, at_once=False)])
def test_cycles_grow_with_batch_and_gradient(layer):
    chip = tpu_slice("v5e:2x2").devices[0]
    one, eight = (cycles(layer, batch, 16, chip, gradient=False) for batch in (1, 8))
    assert 0 < one < eight < cycles(layer, 8, 16, chip, gradient=True)
