"""x0 and context from low-res latents: the noise schedule, upsampling against PyTorch, the coupling itself."""

import dataclasses

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fmboost_jax.errors import InputError
from fmboost_jax.flow.coupling import (
    Coupling,
    cosine_alpha_bar,
    couple,
    noise_augment,
    pixel_space_upsample,
    sample_noise,
    sample_noise_field,
)
from fmboost_jax.images.resize import upsample
from tests.conftest import relative_error


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def nhwc(array):
    return jnp.asarray(array.transpose(0, 2, 3, 1))


def test_what_step_400_of_1000_means():
    alpha_bar = cosine_alpha_bar()
    assert alpha_bar.shape == (1000,)
    assert float(alpha_bar[400]) == pytest.approx(0.6539, abs=5e-5)
    assert alpha_bar[0] == pytest.approx(1, abs=1e-6)
    assert alpha_bar[999] == pytest.approx(0, abs=1e-6)
    assert (np.diff(alpha_bar) < 0).all()


def test_larger_images_get_more_noise():
    """The schedule for size d lowers the log signal-to-noise ratio by 2 ln(d / 64)."""
    middle = slice(300, 700)
    log_snr = [np.log(a[middle] / (1 - a[middle])) for a in (cosine_alpha_bar(1000, 64), cosine_alpha_bar(1000, 128))]
    np.testing.assert_allclose(log_snr[0] - log_snr[1], 2 * np.log(2), rtol=1e-4)


def test_noise_augmentation_by_hand():
    latent, noise = jnp.full((1, 2, 2, 1), 10.0), jnp.full((1, 2, 2, 1), 100.0)
    np.testing.assert_allclose(noise_augment(latent, 400, noise), 8.09 + 58.8, atol=0.06)
    np.testing.assert_allclose(noise_augment(latent, 0, noise), latent, rtol=1e-3)
    np.testing.assert_allclose(noise_augment(latent, 999, noise), noise, rtol=1e-6)


def test_noise_augmentation_keeps_the_variance():
    augmented = noise_augment(normal(0, 4, 32, 32, 4), 400, normal(1, 4, 32, 32, 4))
    assert float(augmented.std()) == pytest.approx(1, abs=0.03)


def test_the_step_may_be_traced():
    latent, noise = normal(2, 1, 2, 2, 1), normal(3, 1, 2, 2, 1)
    traced = jax.jit(noise_augment)(latent, jnp.int32(400), noise)
    np.testing.assert_allclose(traced, noise_augment(latent, 400, noise), rtol=1e-6)


@pytest.mark.parametrize("step", [-1, 1000])
def test_a_step_out_of_range_is_refused(step):
    with pytest.raises(InputError, match=f"step {step} is outside 0 to 999"):
        noise_augment(jnp.zeros((1, 2, 2, 1)), step, jnp.zeros((1, 2, 2, 1)))


SIZES = st.tuples(st.integers(1, 12), st.integers(1, 12))


@pytest.mark.parametrize("mode", ["nearest", "bilinear", "bicubic"])
@settings(max_examples=15, deadline=None)
@given(before=SIZES, after=st.tuples(st.integers(1, 30), st.integers(1, 30)))
def test_upsampling_agrees_with_pytorch(mode, before, after):
    latent = np.random.default_rng(0).standard_normal((2, 3, *before)).astype(np.float32)
    corners = {} if mode == "nearest" else {"align_corners": False}
    expected = torch.nn.functional.interpolate(torch.from_numpy(latent), size=after, mode=mode, **corners).numpy()
    found = jax.jit(lambda latent: upsample(latent, after, mode))(nhwc(latent))
    np.testing.assert_allclose(found, nhwc(expected), atol=2e-5)


def test_nearest_rounds_as_pytorch():
    """floor(i · before / after) in float32, as in PyTorch, differs from exact integers at some sizes."""
    for before, after in ((6, 74), (14, 46), (62, 28)):
        ramp = np.arange(before, dtype=np.float32)[None, None, None, :]
        expected = torch.nn.functional.interpolate(torch.from_numpy(ramp), size=(1, after), mode="nearest").numpy()
        np.testing.assert_array_equal(upsample(nhwc(ramp), (1, after), "nearest"), nhwc(expected))
        assert (expected.ravel() != np.arange(after) * before // after).any()


def test_a_square_may_be_given_as_one_number():
    latent = normal(4, 1, 3, 5, 2)
    np.testing.assert_array_equal(upsample(latent, 6, "bilinear"), upsample(latent, (6, 6), "bilinear"))


def test_identity_refuses_another_size():
    latent = normal(5, 1, 4, 6, 2)
    np.testing.assert_array_equal(upsample(latent, (4, 6), "identity"), latent)
    with pytest.raises(InputError, match="expected 8×12, found 4×6"):
        upsample(latent, (8, 12), "identity")


def test_noise_upsampling_fills_new_positions_with_noise():
    latent, noise = normal(6, 2, 16, 16, 4), normal(7, 2, 32, 48, 4)
    result = upsample(latent, (32, 48), "noise", noise)
    np.testing.assert_array_equal(result[:, ::2, ::3], latent)
    kept = np.zeros((32, 48), bool)
    kept[::2, ::3] = True
    np.testing.assert_array_equal(np.asarray(result)[:, ~kept], np.asarray(noise)[:, ~kept])
    assert float(result.std()) == pytest.approx(1, abs=0.03)


def test_noise_upsampling_refuses_wrong_noise_and_sizes():
    latent = normal(8, 1, 4, 4, 2)
    with pytest.raises(InputError, match="whole multiple of 4×4, found 6×8"):
        upsample(latent, (6, 8), "noise", normal(9, 1, 6, 8, 2))
    with pytest.raises(InputError, match=r"noise of shape \(1, 8, 8, 2\), found none"):
        upsample(latent, 8, "noise")


def test_an_unknown_mode_is_refused():
    with pytest.raises(InputError, match="'lanczos' is unknown; expected one of nearest, bilinear, bicubic"):
        upsample(jnp.zeros((1, 2, 2, 1)), 4, "lanczos")


def test_pixel_space_upsampling_resizes_the_image():
    """With an autoencoder of f = 2 whose decoder is exact on even pixels."""
    latent = normal(10, 1, 4, 5, 3)
    images = []

    def decode(latent):
        return jnp.repeat(jnp.repeat(latent, 2, 1), 2, 2)

    def encode(image):
        images.append(image)
        return image[:, ::2, ::2]

    result = pixel_space_upsample(latent, (8, 10), encode, decode)
    np.testing.assert_array_equal(images[0], upsample(decode(latent), (16, 20), "bilinear"))
    np.testing.assert_array_equal(result, encode(images[0]))
    images.clear()
    pixel_space_upsample(latent, (8, 10), encode, decode, Coupling(upsampling="psu_bicubic").pixel_filter)
    np.testing.assert_array_equal(images[0], upsample(decode(latent), (16, 20), "bicubic"))


def test_context_has_no_noise_and_x0_has():
    low_res, noise = normal(11, 2, 4, 4, 3), normal(12, 2, 8, 8, 3)
    x0, context = couple(low_res, size=8, start="low_res", noise_step=400, mode="bilinear", noise=noise)
    np.testing.assert_array_equal(context, upsample(low_res, 8, "bilinear"))
    np.testing.assert_allclose(x0, 0.80864 * context + 0.58830 * noise, atol=1e-4)


def test_a_flow_may_start_from_noise():
    low_res, noise = normal(13, 2, 4, 4, 3), normal(14, 2, 8, 8, 3)
    x0, context = couple(low_res, size=8, start="noise", noise_step=400, mode="nearest", noise=noise)
    np.testing.assert_array_equal(x0, noise)
    np.testing.assert_array_equal(context, upsample(low_res, 8, "nearest"))


def test_psu_latents_are_their_own_context():
    low_res, noise = normal(15, 2, 8, 8, 3), normal(16, 2, 8, 8, 3)
    _, context = couple(low_res, size=(8, 8), start="low_res", noise_step=400, mode="identity", noise=noise)
    np.testing.assert_array_equal(context, low_res)


def test_noise_upsampling_has_its_own_noise():
    low_res, noise, fill = normal(17, 1, 4, 4, 3), normal(18, 1, 8, 8, 3), normal(19, 1, 8, 8, 3)
    x0, context = couple(
        low_res, size=8, start="low_res", noise_step=400, mode="noise", noise=noise, upsampling_noise=fill
    )
    np.testing.assert_array_equal(context, upsample(low_res, 8, "noise", fill))
    np.testing.assert_allclose(x0, noise_augment(context, 400, noise), rtol=1e-6)


def test_context_and_x0_may_be_upsampled_differently():
    low_res, noise, fill = normal(22, 2, 4, 4, 3), normal(23, 2, 8, 8, 3), normal(24, 2, 8, 8, 3)
    coupling = Coupling(upsampling="lsu", mode="noise", context_mode="nearest")
    assert coupling.draws_upsampling_noise
    x0, context = coupling.couple(low_res, 8, noise, fill)
    np.testing.assert_array_equal(context, upsample(low_res, 8, "nearest"))
    np.testing.assert_allclose(x0, noise_augment(upsample(low_res, 8, "noise", fill), 400, noise), rtol=1e-6)
    same = dataclasses.replace(coupling, mode="bilinear", context_mode=None).couple(low_res, 8, noise)
    named = dataclasses.replace(coupling, mode="bilinear", context_mode="bilinear").couple(low_res, 8, noise)
    np.testing.assert_array_equal(same, named)
    with pytest.raises(InputError, match="context_mode 'cubic' is unknown"):
        Coupling(context_mode="cubic")


def test_couple_refuses_unknown_starts_and_wrong_noise():
    low_res, noise = normal(20, 1, 4, 4, 3), normal(21, 1, 8, 8, 3)
    with pytest.raises(InputError, match="start 'middle' is unknown; expected one of low_res, noise"):
        couple(low_res, size=8, start="middle", noise_step=400, mode="nearest", noise=noise)
    with pytest.raises(InputError, match=r"noise has shape \(1, 4, 4, 3\), expected .*\(1, 8, 8, 3\)"):
        couple(low_res, size=8, start="low_res", noise_step=400, mode="nearest", noise=low_res)


def test_noise_depends_on_the_examples_key_alone():
    keys = jax.random.split(jax.random.key(0), 4)
    together = sample_noise(keys, (3, 3, 2))
    assert together.shape == (4, 3, 3, 2)
    np.testing.assert_array_equal(together[2:3], sample_noise(keys[2:3], (3, 3, 2)))
    assert not np.allclose(together[0], together[1])


def test_the_reference_numbers(golden):
    numbers = golden("source_ema_resize.npz")
    for size in (64, 128):
        assert relative_error(cosine_alpha_bar(1000, size), numbers[f"alpha_bar_{size}"]) < 1e-6
    for step in (400, 999):
        found = noise_augment(nhwc(numbers["in/x"]), step, nhwc(numbers["in/noise"]))
        assert relative_error(found, nhwc(numbers[f"q_sample_{step}"])) < 1e-6
    sources = {"upsample": nhwc(numbers["in/z"]), "downsample": nhwc(numbers["in/im"])}
    resized = [key for key in numbers if key.split("/")[0] in sources]
    assert len(resized) >= 8
    for key in resized:
        direction, mode, size = key.split("/")
        assert relative_error(upsample(sources[direction], int(size), mode), nhwc(numbers[key])) < 1e-5, key


@pytest.mark.parametrize("mode", ["nearest", "bilinear", "bicubic", "noise"])
def test_a_program_for_any_size_resizes_alike(mode):
    batch, height, width = jax.export.symbolic_shape("b, 2*h, 2*w")

    def enlarge(latent, noise):
        size = 3 * latent.shape[1], 3 * latent.shape[2]
        return upsample(latent, size, mode, noise if mode == "noise" else None)

    shapes = [jax.ShapeDtypeStruct((batch, n * height, n * width, 3), jnp.float32) for n in (1, 3)]
    program = jax.export.export(jax.jit(enlarge))(*shapes)
    arrays = [jax.random.normal(jax.random.key(n), (2, n * 4, n * 6, 3)) for n in (1, 3)]
    np.testing.assert_allclose(program.call(*arrays), enlarge(*arrays), atol=1e-5)


def test_windows_of_a_noise_field_agree_where_they_overlap():
    keys = jnp.stack([jax.random.key(0)] * 2)
    one, other = np.asarray(sample_noise_field(keys, jnp.array([[0, 3], [2, 8]]), (20, 24, 3)))
    np.testing.assert_array_equal(one[2:, 5:], other[:-2, :-5])
    assert abs(one.mean()) < 0.1
    assert abs(one.std() - 1) < 0.05
