"""The layers that the TPU benchmark compiles, and its extrapolation to larger slices."""

import pytest

pytest.importorskip("libtpu")

from bench.tpu import cycles, extrapolate, residual_block, rows, upsampling
from fmboost_jax.planning.topologies import tpu_slice


@pytest.mark.parametrize("layer", [residual_block(256), upsampling(64), upsampling(64, fused=False)])
def test_cycles_grow_with_batch_and_gradient(layer):
    chip = tpu_slice("v5e:2x2").devices[0]
    one, eight = (cycles(layer, batch, 16, chip, gradient=False) for batch in (1, 8))
    assert 0 < one < eight < cycles(layer, 8, 16, chip, gradient=True)


def test_larger_slices_extrapolated_from_four_chips_agree_with_compiled_ones():
    compiled = {_place(row): row for row in rows() if row["label"] == "after"}
    both = [(row, compiled[_place(row)]) for row in extrapolate(list(compiled.values())) if _place(row) in compiled]
    assert {256} <= {row["chips"] for row, _ in both}
    for row, there in both:
        for name in ("seconds", "mfu", "images_per_second"):
            assert row["prediction"][name] == pytest.approx(there["prediction"][name], rel=0.01)


def _place(row):
    return row["name"], row["topology"], row["batch_per_chip"]
