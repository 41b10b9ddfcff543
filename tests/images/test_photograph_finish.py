"""Steps around the boost of a photograph: transparency, colours, settings, and the clock of compilations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fmboost_jax.errors import InputError
from fmboost_jax.images import colour
from fmboost_jax.images.colour import FIXES, fix_colour
from fmboost_jax.images.photos import load_photo, with_alpha
from fmboost_jax.images.png import read_settings, write_png
from fmboost_jax.runtime.timing import CompileClock


def smooth(seed, side, channels=3):
    """A picture of large soft blobs, uint8."""
    small = np.random.default_rng(seed).integers(60, 190, (4, 4, channels), np.uint8)
    return np.asarray(Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 99), level=st.integers(64, 255))
def test_composited_on_white_again_it_is_the_boosted_image(seed, level):
    colours = smooth(seed, 16)
    on_white = np.round(255 - (255 - colours.astype(float)) * level / 255).astype(np.uint8)
    found = with_alpha(on_white, np.full((8, 8), level, np.uint8))
    assert (found[..., 3] == level).all()
    # Rounding on white is off by half a level, 255 / alpha times that without it.
    assert np.abs(found[..., :3].astype(int) - colours).max() <= 0.5 * 255 / level + 0.5


def test_alpha_is_upright_and_none_for_opaque_images(tmp_path):
    pixels = np.full((4, 6, 4), 255, np.uint8)
    path = tmp_path / "picture.png"
    Image.fromarray(pixels).save(path)
    assert load_photo(path).alpha is None
    pixels[0, :, 3] = 7
    turned = Image.Exif()
    turned[0x0112] = 6  # to be turned by 90° clockwise
    Image.fromarray(pixels).save(path, exif=turned)
    alpha = load_photo(path).alpha
    assert alpha.shape == (6, 4)
    assert (alpha[:, -1] == 7).all()
    assert (alpha[:, :-1] == 255).all()


@pytest.mark.parametrize("fix", sorted(FIXES))
def test_a_colour_drift_is_corrected_and_detail_kept(fix):
    low = smooth(3, 64)
    truth = np.asarray(Image.fromarray(low).resize((128, 128), Image.Resampling.BICUBIC))
    detail = np.where(np.indices((128, 128)).sum(0) % 2, 6, -6)[..., None]
    drifted = (truth + detail + np.array([25, -20, 10])).astype(np.uint8)
    found = fix_colour(drifted[None], low[None], fix)[0].astype(float)
    assert np.abs(found.mean((0, 1)) - truth.mean((0, 1))).max() < 0.5
    assert np.abs(drifted - (truth + detail)).mean() > 15
    assert np.abs(found - (truth + detail)).mean() < 2.5
    assert np.abs(np.diff(found[..., 0], axis=1)).mean() > 8


def test_a_consistent_image_shrinks_to_the_small_one():
    """At ×4 with random detail, only rounding remains, and detail finer than the small image's pixels is kept."""
    low = smooth(5, 24)
    detail = np.random.default_rng(0).normal(0, 20, (96, 96, 3))
    image = np.clip(np.asarray(Image.fromarray(low).resize((96, 96))) + detail, 0, 255).astype(np.uint8)
    found = fix_colour(image[None], low[None], "consistency")[0].astype(float)
    shrunk = found.reshape(24, 4, 24, 4, 3).mean((1, 3))
    before = image.reshape(24, 4, 24, 4, 3).mean((1, 3), dtype=float)
    assert np.abs(shrunk - low).mean() < 0.1 * np.abs(before - low).mean()
    assert found.std() > 0.9 * image.std()


def test_an_unknown_fix_is_refused():
    picture = smooth(0, 8)[None]
    with pytest.raises(InputError, match="expected one of adain, wavelet, consistency"):
        fix_colour(picture, picture, "warm")


def test_settings_are_read_from_the_png(tmp_path):
    path = str(tmp_path / "picture.png")
    assert read_settings(path) is None
    write_png(path, smooth(0, 8), {"seed": 3})
    assert read_settings(path) == {"seed": 3}
    Image.fromarray(smooth(0, 8)).save(path)
    assert read_settings(path) is None
    (tmp_path / "picture.png").write_bytes(b"no picture")
    assert read_settings(path) is None


def test_the_clock_measures_compilation():
    double = jax.jit(lambda x: jnp.sin(x) * 2 + 0.12345)
    with CompileClock() as clock:
        double(jnp.arange(5.0)).block_until_ready()
    assert 0 < clock.compiling <= clock.elapsed
    numbers = jnp.arange(5.0)
    with CompileClock() as again:
        double(numbers).block_until_ready()
    assert again.compiling == 0


def test_the_clock_counts_nested_compilations_once():
    trace, compile_ = (f"/jax/core/compile/{name}_duration" for name in ("jaxpr_trace", "backend_compile"))
    with CompileClock() as clock:
        jax.monitoring.record_event_duration_secs(trace, 0.5)  # within the next, which began earlier
        jax.monitoring.record_event_duration_secs(trace, 2.0)
        jax.monitoring.record_event_duration_secs("/another/duration", 9.0)
    assert clock.compiling == pytest.approx(2.0)
    with CompileClock() as clock:
        jax.monitoring.record_event_duration_secs(compile_, 3.0)
    assert clock.compiling == pytest.approx(3.0)


@pytest.mark.parametrize("factor", [2, 4])
@pytest.mark.parametrize("fix", FIXES)
def test_correction_in_strips_gives_the_same_colours(fix, factor, monkeypatch):
    """A photograph of 200 megapixels is corrected a few rows at a time."""
    numbers = np.random.default_rng(0)
    low = numbers.integers(0, 256, (1, 90, 12, 3), dtype=np.uint8)
    large = numbers.integers(0, 256, (1, 90 * factor, 12 * factor, 3), dtype=np.uint8)
    whole = fix_colour(large, low, fix)
    sizes = []
    correct = FIXES[fix]
    monkeypatch.setitem(FIXES, fix, lambda image, low: sizes.append(len(low)) or correct(image, low))
    monkeypatch.setattr(colour, "STRIP", 7 * 12 * factor * factor * 3)
    difference = np.abs(fix_colour(large, low, fix).astype(int) - whole)
    assert difference.max() <= 1
    assert np.mean(difference) < 1e-3
    assert max(sizes) <= 7 + 2 * 19 if fix != "adain" else sizes == [90]
