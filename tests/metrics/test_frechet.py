"""The Fréchet distance against scipy's square root, its statistics against numpy's, patches and files."""

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st

from fmboost_jax.errors import InputError
from fmboost_jax.metrics.frechet import FeatureStatistics, frechet_distance, patches


def statistics(features: np.ndarray) -> FeatureStatistics:
    result = FeatureStatistics(features.shape[1])
    result.update(features)
    return result


def by_sqrtm(a: np.ndarray, b: np.ndarray) -> float:
    """The textbook formula on whole arrays."""
    difference = a.mean(axis=0) - b.mean(axis=0)
    first, second = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    return difference @ difference + np.trace(first + second - 2 * scipy.linalg.sqrtm(first @ second).real)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), dimensions=st.integers(2, 12), scale=st.floats(0.01, 100), shift=st.floats(-50, 50))
def test_the_distance_agrees_with_scipy(seed, dimensions, scale, shift):
    generator = np.random.default_rng(seed)
    a = generator.normal(size=(60, dimensions)) @ generator.normal(size=(dimensions, dimensions))
    b = shift + scale * generator.normal(size=(70, dimensions)) @ generator.normal(size=(dimensions, dimensions))
    found = frechet_distance(statistics(a), statistics(b))
    np.testing.assert_allclose(found, by_sqrtm(a, b), rtol=1e-7, atol=1e-7)
    np.testing.assert_allclose(frechet_distance(statistics(b), statistics(a)), found, rtol=1e-9, atol=1e-9)


@pytest.mark.filterwarnings("ignore:.*the covariance is singular")
@pytest.mark.parametrize("count", [2, 5, 60])
def test_equal_sets_have_distance_zero_even_if_singular(count):
    features = np.random.default_rng(count).normal(3, 20, size=(count, 40))
    variance = features.var(axis=0).sum()
    assert 0 <= frechet_distance(statistics(features), statistics(features[::-1])) < 1e-12 * variance


@pytest.mark.filterwarnings("ignore:.*the covariance is singular")
def test_singular_covariances_with_a_known_distance():
    # Variance along one axis alone: the distance is (μ − μ')² + (σ − σ')².
    generator = np.random.default_rng(0)
    axis = generator.normal(size=(1, 64))
    axis /= np.linalg.norm(axis)
    a, b = generator.normal(2, 3, size=(30, 1)), generator.normal(-1, 5, size=(9, 1))
    expected = (a.mean() - b.mean()) ** 2 + (a.std(ddof=1) - b.std(ddof=1)) ** 2
    np.testing.assert_allclose(frechet_distance(statistics(a @ axis), statistics(b @ axis)), expected, rtol=1e-12)
    # Along axes at right angles nothing is shared: the variances add up.
    other = generator.normal(size=(1, 64))
    other -= axis * (other @ axis.T)
    other /= np.linalg.norm(other)
    means = a.mean() * axis - b.mean() * other
    expected = (means @ means.T).item() + a.var(ddof=1) + b.var(ddof=1)
    np.testing.assert_allclose(frechet_distance(statistics(a @ axis), statistics(b @ other)), expected, rtol=1e-12)


@pytest.mark.filterwarnings("ignore:.*the covariance is singular")
def test_constant_sets_differ_by_their_means():
    a, b = np.full((4, 6), 2.0), np.full((5, 6), -1.0)
    assert frechet_distance(statistics(a), statistics(b)) == pytest.approx(6 * 9, rel=1e-14)


def test_too_few_images():
    with pytest.warns(UserWarning, match="3 images for 8 features"):
        frechet_distance(statistics(np.eye(3, 8)), statistics(np.random.default_rng(0).normal(size=(20, 8))))
    with pytest.raises(InputError, match="2 images or more, found 1"):
        frechet_distance(statistics(np.ones((1, 8))), statistics(np.ones((3, 8))))
    with pytest.raises(InputError, match="8 features against 7"):
        frechet_distance(statistics(np.ones((3, 8))), statistics(np.ones((3, 7))))


@settings(max_examples=20, deadline=None)
@given(cuts=st.lists(st.integers(0, 30), max_size=4), far=st.sampled_from([0.0, 1e6]))
def test_statistics_do_not_depend_on_the_parts(cuts, far):
    features = far + np.random.default_rng(0).normal(size=(30, 4))
    merged, streamed = FeatureStatistics(4), FeatureStatistics(4)
    for part in np.split(features, sorted(cuts)):
        streamed.update(part)
        merged.merge(statistics(part))
    for found in (merged, streamed):
        assert found.count == 30
        np.testing.assert_allclose(found.mean, features.mean(axis=0), rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(found.covariance, np.cov(features, rowvar=False), rtol=1e-8, atol=1e-12)


def test_features_that_are_not_finite():
    with pytest.raises(InputError, match="not finite"):
        statistics(np.array([[1.0, np.nan]]))


def test_statistics_are_kept_bit_for_bit(tmp_path):
    before = statistics(np.random.default_rng(0).normal(size=(9, 3)))
    before.save(tmp_path / "statistics.npz")
    after = FeatureStatistics.load(tmp_path / "statistics.npz")
    assert after.count == 9
    assert np.array_equal(after.mean, before.mean)
    assert np.array_equal(after.covariance, before.covariance)
    (tmp_path / "cut.npz").write_bytes((tmp_path / "statistics.npz").read_bytes()[:-20])
    for name in ("cut.npz", "absent.npz"):
        with pytest.raises(InputError, match=name):
            FeatureStatistics.load(tmp_path / name)


def test_patches_depend_on_name_and_seed():
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    cut = patches(image, "a.png", size=16, count=4)
    assert cut.shape == (4, 16, 16, 3)
    windows = np.lib.stride_tricks.sliding_window_view(image, (16, 16, 3)).reshape(-1, 16, 16, 3)
    assert all((windows == patch).all(axis=(1, 2, 3)).any() for patch in cut)
    assert len({patch.tobytes() for patch in cut}) == 4
    assert np.array_equal(cut, patches(image, "a.png", size=16, count=4))
    assert not np.array_equal(cut, patches(image, "b.png", size=16, count=4))
    assert not np.array_equal(cut, patches(image, "a.png", size=16, count=4, seed=1))
    with pytest.raises(InputError, match="60×40 pixels is smaller than a patch of 64×64"):
        patches(image, "a.png", size=64, count=1)
