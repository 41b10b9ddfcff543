"""Tiles cover every pixel, are blended without a seam, and have one shape."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmboost_jax.images.tiles import map_tiles, tile_starts


def nearest(factor):
    return lambda tiles, _: tiles.repeat(factor, axis=1).repeat(factor, axis=2)


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    tile=st.integers(8, 24),
    overlap=st.integers(0, 7),
    factor=st.integers(1, 3),
    align=st.sampled_from((1, 2, 4)),
    batch_size=st.integers(1, 4),
)
def test_a_function_of_single_pixels_gives_what_it_gives_the_whole_image(
    height, width, tile, overlap, factor, align, batch_size
):
    image = np.random.default_rng(height * width).integers(0, 256, (height, width, 3), np.uint8)
    tile += -tile % align
    shapes, seen = set(), []

    def enlarge(tiles, corners):
        shapes.add(tiles.shape)
        assert not (corners % align).any()
        return nearest(factor)(tiles, corners)

    result = map_tiles(
        enlarge,
        image,
        factor=factor,
        tile=tile,
        overlap=overlap,
        align=align,
        batch_size=batch_size,
        progress=lambda done, total: seen.append((done, total)),
    )
    np.testing.assert_array_equal(result, nearest(factor)(image[None], None)[0])
    assert shapes == {(batch_size, tile, tile, 3)}
    assert seen[-1][0] == seen[-1][1]
    assert seen == sorted(seen)


@given(side=st.integers(1, 10_000), tile=st.integers(2, 300), data=st.data())
def test_starts_cover_the_side_and_share_the_overlap(side, tile, data):
    overlap = data.draw(st.integers(0, tile - 1))
    starts = tile_starts(side, tile, overlap)
    assert starts[0] == 0
    assert starts[-1] == max(side - tile, 0)
    assert all(0 < after - before <= tile - overlap for before, after in itertools.pairwise(starts))


def test_tiles_that_disagree_are_blended_linearly():
    """Tiles of 0, then of 200: across the overlap the values rise without a jump larger than the ramp's step."""
    calls = []

    def constant(tiles, corners):
        calls.append(len(calls))
        return np.full((1, 16, 16, 3), 200 * (len(calls) - 1), np.uint8)

    line = map_tiles(constant, np.zeros((16, 24, 3), np.uint8), factor=1, tile=16, overlap=8)[0, :, 0].astype(int)
    assert (line[:8] == 0).all()
    assert (line[16:] == 200).all()
    assert (np.diff(line) >= 0).all()
    assert np.diff(line).max() <= 30


def test_an_overlap_as_large_as_the_tile_is_refused():
    with pytest.raises(ValueError, match="less than the tile's 8"):
        map_tiles(nearest(1), np.zeros((9, 9, 3), np.uint8), factor=1, tile=8, overlap=8)
