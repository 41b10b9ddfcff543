"""The Booster in Python: batches, cascades, compiled programs, warnings; small random networks."""

import contextlib
import dataclasses
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import fmboost_jax
from fmboost_jax.boosting.booster import Booster
from fmboost_jax.boosting.program import jitted_flow
from fmboost_jax.errors import InputError
from fmboost_jax.flow.coupling import Coupling
from fmboost_jax.flow.sde import StochasticSolver
from fmboost_jax.flow.solvers import Solver
from fmboost_jax.images.colour import fix_colour
from fmboost_jax.images.value_range import to_float
from fmboost_jax.interop.autoencoders import load_first_stage
from fmboost_jax.models.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig
from fmboost_jax.models.first_stage import FirstStage, LatentSpec
from fmboost_jax.models.parameters import merge
from fmboost_jax.models.unet import UNet, UNetConfig
from fmboost_jax.parallel.batching import map_batches
from fmboost_jax.parallel.sharding import batch_sharding
from tests.random_models import random_model

UNET = UNetConfig(in_channels=6, out_channels=3, model_channels=32, channel_mult=(1,), num_res_blocks=1, dim_head=16)
SOURCE = Coupling(noise_step=100)


@pytest.fixture(scope="module")
def booster():
    return Booster(random_model(UNet, UNET), load_first_stage("identity"), SOURCE, 2)


@pytest.fixture(scope="module")
def latent_booster():
    config = AutoencoderKLConfig(channels=(8, 8), blocks=1, norm_groups=4, mid_attention=False)
    stage = FirstStage(LatentSpec("kl", "", 4, 2, scaling_factor=0.18215), random_model(AutoencoderKL, config))
    unet = random_model(UNet, dataclasses.replace(UNET, in_channels=8, out_channels=4, channel_mult=(1, 1)))
    return Booster(unet, stage, dataclasses.replace(SOURCE, upsampling="lsu"), 2)


def normal(*shape):
    return np.random.default_rng(0).standard_normal(shape, np.float32)


@contextlib.contextmanager
def compilations():
    """The list that grows by one with each program compiled in the block."""
    found = []

    def listen(event, duration, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            found.append(duration)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield found
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def test_a_second_call_of_one_shape_compiles_nothing(booster):
    with compilations() as compiled:
        booster.decode(booster.boost(normal(2, 4, 8, 3), steps=1))
        assert compiled
        compiled.clear()
        booster.decode(booster.boost(normal(2, 4, 8, 3) / 2, steps=1, seed=5))
        assert not compiled
        booster.boost(normal(2, 8, 8, 3), steps=1)
        assert compiled


def test_batches_are_split_into_parts_of_one_shape(booster, monkeypatch):
    latents = normal(5, 4, 4, 3)
    whole = booster.boost(latents, steps=1, seed=3)
    sizes = []

    def watched(graph, parameters, low, *arguments, **options):
        sizes.append(len(low))
        return jitted_flow(graph, parameters, low, *arguments, **options)

    monkeypatch.setattr("fmboost_jax.boosting.booster.jitted_flow", watched)
    np.testing.assert_allclose(booster.boost(latents, steps=1, seed=3, batch_size=2), whole, atol=1e-4)
    assert sizes == [2, 2, 2]


@settings(max_examples=30, deadline=None)
@given(count=st.integers(1, 9), batch_size=st.none() | st.integers(1, 10), fits=st.integers(1, 9))
def test_parts_are_halved_when_memory_runs_out(count, batch_size, fits):
    sizes = []

    def act(numbers):
        sizes.append(len(numbers))
        if len(numbers) > fits:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.")
        return numbers * 2

    numbers = np.arange(count)
    size = min(count, batch_size or count)
    np.testing.assert_array_equal(map_batches(act, [numbers], size, example="a number"), 2 * numbers)
    assert sizes == sorted(sizes, reverse=True)
    assert max(sizes) <= min(count, batch_size or count)


def test_out_of_memory_names_the_size_and_the_remedies(booster, monkeypatch):
    def exhausted(*arguments, **options):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")

    monkeypatch.setattr("fmboost_jax.boosting.booster.jitted_flow", exhausted)
    with pytest.raises(InputError, match=r"out of memory with latents of 8×16.*bfloat16"):
        booster.boost(normal(2, 4, 8, 3))
    with pytest.raises(InputError, match=r"an image of 8×8 pixels"):
        booster.upscale(np.zeros((3, 4, 4, 3), np.uint8), tile=0)

    def broken(*arguments, **options):
        raise jax.errors.JaxRuntimeError("INTERNAL: another thing")

    monkeypatch.setattr("fmboost_jax.boosting.booster.jitted_flow", broken)
    with pytest.raises(jax.errors.JaxRuntimeError, match="another thing"):
        booster.boost(normal(2, 4, 8, 3))


def test_a_cascade_is_one_boost_after_the_other(booster):
    options = {"steps": 1, "seed": 4}
    latents = normal(1, 4, 4, 3)
    first = booster.boost(latents, **options)
    second = booster.boost(first, **options)
    stages = booster.cascade(latents, [booster], intermediates=True, **options)
    assert [stage.shape for stage in stages] == [(1, 8, 8, 3), (1, 16, 16, 3)]
    for found, expected in zip(stages, (first, second), strict=True):
        np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(booster.cascade(latents, [booster], **options), second)


def test_boosted_latents_are_decoded_partly_consistent_with_the_small_ones(booster, monkeypatch):
    small = normal(1, 4, 4, 3)
    large = booster.boost(small, steps=1)
    plain, given = (booster.decode(latents) for latents in (large, small))
    fixed = fix_colour(plain, given, "consistency")
    assert np.abs(fixed.astype(int) - plain).max() > 8
    found = booster.decode_boosted(large, small, 0.5)
    # Whole corrections are clipped to the range of uint8, halves afterwards.
    inside = (fixed > 0) & (fixed < 255)
    assert np.abs(found - (plain.astype(float) + fixed) / 2)[inside].max() <= 1
    np.testing.assert_array_equal(booster.decode_boosted(large, small), plain)
    monkeypatch.setattr(booster, "consistency", 0.5)
    np.testing.assert_array_equal(booster.decode_boosted(large, small), found)
    np.testing.assert_array_equal(booster.decode_boosted(large, small, 0.0), plain)


def test_a_cascade_over_two_autoencoders_is_refused(booster, latent_booster):
    with pytest.raises(InputError, match=r"stage 2 of the cascade: its autoencoder has channels 4"):
        booster.cascade(normal(1, 4, 4, 3), [latent_booster])


def test_upsampling_in_pixels_and_in_latents_differ(latent_booster):
    latents = normal(1, 4, 4, 4)
    trained = latent_booster.boost(latents, steps=1)
    np.testing.assert_array_equal(latent_booster.boost(latents, steps=1, upsampling="lsu"), trained)
    through_pixels = latent_booster.boost(latents, steps=1, upsampling="psu")
    assert through_pixels.shape == trained.shape == (1, 8, 8, 4)
    assert np.abs(through_pixels - trained).max() > 0.1
    with pytest.raises(InputError, match="'pixels' is unknown; expected one of psu, psu_bicubic, lsu"):
        latent_booster.boost(latents, upsampling="pixels")


def test_noise_step_is_the_strength_of_the_noise(booster):
    """Without noise the seed has no effect; with the trained step named, nothing changes."""
    latents = normal(1, 4, 4, 3)
    without = booster.boost(latents, steps=1, noise_step=0)
    np.testing.assert_allclose(without, booster.boost(latents, steps=1, noise_step=0, seed=9), atol=1e-2)
    trained = booster.boost(latents, steps=1)
    np.testing.assert_array_equal(trained, booster.boost(latents, steps=1, noise_step=100))
    assert np.abs(trained - booster.boost(latents, steps=1, seed=9)).max() > 0.1
    with pytest.raises(InputError, match="0 to 999, found 1000"):
        booster.boost(latents, noise_step=1000)


def test_unscaled_latents_give_a_warning(latent_booster, booster):
    latents = normal(1, 4, 4, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        latent_booster.boost(latents, steps=1)
        booster.boost(0.01 * normal(1, 4, 4, 3), steps=1)  # dark photographs are no mix-up
    for mistaken in (latents / 0.18215, latents * 0.18215):
        with pytest.warns(UserWarning, match=r"expected about 1\. Boosters expect scaled latents"):
            latent_booster.boost(mistaken, steps=1)


def test_sizes_and_empty_batches_are_refused(booster):
    deeper = Booster(random_model(UNet, dataclasses.replace(UNET, channel_mult=(1, 1, 1))), *parts(booster))
    with pytest.raises(InputError, match=r"low-res latents of 4×5: .* multiples of 2"):
        deeper.boost(normal(1, 4, 5, 3))
    with pytest.raises(InputError, match=r"found \(0, 4, 4, 3\)"):
        booster.boost(normal(0, 4, 4, 3))
    with pytest.raises(InputError, match="batch_size must be 1 or more"):
        booster.boost(normal(1, 4, 4, 3), batch_size=0)


def parts(booster):
    return booster.first_stage, booster.coupling, booster.factor


def test_the_package_exports_booster():
    assert fmboost_jax.Booster is Booster
    assert fmboost_jax.flow.Solver is fmboost_jax.Solver
    assert {"UNet", "AutoencoderKL", "FirstStage"} <= set(dir(fmboost_jax.models))
    with pytest.raises(AttributeError, match="Boost"):
        fmboost_jax.Boost  # noqa: B018


def test_devices_share_the_batch_with_the_same_result(latent_booster):
    # Six devices: three share the batch, pairs of them the heights; three and five images fill them unevenly.
    alone, low = latent_booster, normal(5, 8, 4, 4)
    many = Booster(
        merge(alone.graph, alone.parameters),
        alone.first_stage,
        alone.coupling,
        alone.factor,
        devices=jax.devices()[:6],
        spatial=2,
    )
    expected, found = alone.boost(low, steps=2, seed=4), many.boost(low, steps=2, seed=4)
    np.testing.assert_allclose(found, expected, atol=2e-5)
    assert np.abs(many.decode(expected).astype(int) - alone.decode(expected)).max() <= 1
    photographs = np.random.default_rng(0).integers(0, 256, (2, 16, 9, 3), dtype=np.uint8)
    whole = alone.upscale(photographs, steps=1, tile=0, colour_fix=None)
    assert np.abs(many.upscale(photographs, steps=1, colour_fix=None).astype(int) - whole).max() <= 1


def test_devices_that_share_heights_each_use_less_memory(latent_booster):
    def temporaries(spatial):
        stage = latent_booster.first_stage
        many = Booster(
            merge(latent_booster.graph, latent_booster.parameters),
            stage,
            latent_booster.coupling,
            2,
            devices=jax.devices()[:spatial],
            spatial=spatial,
        )
        sharding = batch_sharding(many.mesh)
        shapes = [jax.ShapeDtypeStruct(shape, np.float32, sharding=sharding) for shape in ((1, 64, 64, 4),)]
        keys = jax.ShapeDtypeStruct((1,), jax.random.key(0).dtype)
        options = {"size": (128, 128), "coupling": many.coupling, "solver": Solver("euler", 2)}
        with jax.set_mesh(many.mesh):
            flow = jitted_flow.lower(many.graph, many.parameters, *shapes, keys, **options).compile()
        return flow.memory_analysis().temp_size_in_bytes

    assert temporaries(4) < 0.4 * temporaries(1)


@pytest.mark.parametrize(
    ("options", "height", "message"),
    [
        ({"spatial": 4}, 6, "4 devices cannot share a height of 6"),
        ({"spatial": 3}, 8, "does not fit 4 devices"),
    ],
)
def test_heights_and_devices_that_do_not_fit_are_refused(booster, options, height, message):
    def shared():
        unet = merge(booster.graph, booster.parameters)
        many = Booster(unet, booster.first_stage, SOURCE, 2, devices=jax.devices()[:4], **options)
        return many.boost(normal(1, height, 8, 3), steps=1)

    with pytest.raises(InputError, match=message):
        shared()


def test_images_of_any_kind_come_back_as_the_same_kind(booster):
    one = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
    batch = booster.upscale(one[None], steps=1)
    np.testing.assert_array_equal(booster(one, steps=1), batch[0])
    image = booster(Image.fromarray(one), steps=1)
    np.testing.assert_array_equal(np.asarray(image), batch[0])
    first, small, last = booster([Image.fromarray(one), one[:2], one], steps=1, seed=[0, 5, 0])
    np.testing.assert_array_equal(np.asarray(first), batch[0])
    np.testing.assert_array_equal(last, batch[0])
    np.testing.assert_array_equal(small, booster(one[:2], steps=1, seed=5))
    with pytest.raises(InputError, match="must be uint8"):
        booster(one / 255)


def test_encode_and_decode_are_inverses_on_scaled_latents(booster, latent_booster):
    images = np.random.default_rng(0).integers(0, 256, (2, 4, 6, 3), np.uint8)
    np.testing.assert_array_equal(booster.decode(booster.encode(images)), images)
    latents = latent_booster.encode(images)
    raw = latent_booster.first_stage.encode_raw(to_float(jnp.asarray(images)))
    np.testing.assert_allclose(latents, raw * 0.18215, rtol=1e-4, atol=1e-6)
    with pytest.raises(InputError, match="multiples of 2"):
        latent_booster.encode(images[:, :3])
    with pytest.raises(InputError, match="one size"):
        booster.encode([images[0], images[0, :2]])


def test_values_that_are_not_finite_name_their_stage(booster, latent_booster):
    with pytest.raises(InputError, match="the latents to decode hold NaN"):
        booster.decode(np.full((1, 4, 4, 3), np.nan, np.float32))
    bad = {name: array * np.nan for name, array in booster.parameters.items()}
    broken = Booster(merge(booster.graph, bad), *parts(booster))
    with pytest.raises(InputError, match=r"the flow returned NaN.* weights are not finite, such as "):
        broken.boost(normal(1, 4, 4, 3), steps=1)
    with pytest.raises(InputError, match="the decoder returned NaN or infinite values; its weights are finite"):
        latent_booster.decode(np.full((1, 4, 4, 4), 1e38, np.float32))


def test_a_solver_replaces_steps_and_method(booster):
    latents = normal(1, 4, 4, 3)
    expected = booster.boost(latents, steps=2, method="midpoint")
    np.testing.assert_array_equal(booster.boost(latents, solver=Solver("midpoint", 2)), expected)
    states = booster.boost(latents, solver=Solver("midpoint", 2), return_trajectory=True)
    assert states.shape == (3, 1, 8, 8, 3)
    np.testing.assert_allclose(states[-1], expected, atol=1e-5)
    adaptive = booster.boost(latents, solver=Solver("dopri5", 1, rtol=1e-3, atol=1e-3))
    assert np.isfinite(np.asarray(adaptive)).all()
    with pytest.raises(InputError, match="give either solver"):
        booster.boost(latents, solver=Solver(), steps=2)


def test_guidance_moves_from_the_null_context(booster):
    latents = normal(1, 4, 4, 3)
    plain = booster.boost(latents, steps=1)
    np.testing.assert_allclose(booster.boost(latents, steps=1, guidance=1.0), plain, atol=1e-4)
    zero, one, two = (np.asarray(booster.boost(latents, steps=1, guidance=scale)) for scale in (0.0, 1.0, 2.0))
    np.testing.assert_allclose(two - one, one - zero, atol=1e-4)
    assert np.abs(two - one).max() > 1e-4


def test_stochastic_sampling_is_for_flows_that_start_from_noise(booster):
    stage, coupling, factor = parts(booster)
    noisy = Booster(
        merge(booster.graph, booster.parameters), stage, dataclasses.replace(coupling, start="noise"), factor
    )
    sde = StochasticSolver(steps=2)
    latents = normal(2, 4, 4, 3)
    first = noisy.boost(latents, stochastic=sde, seed=3)
    np.testing.assert_array_equal(noisy.boost(latents, stochastic=sde, seed=3), first)
    np.testing.assert_allclose(noisy.boost(latents[1:], stochastic=sde, seed=4), first[1:], atol=1e-4)
    deterministic = noisy.boost(latents, stochastic=dataclasses.replace(sde, norm=0.0), seed=3)
    assert np.abs(deterministic - first).max() > 1e-2
    with pytest.raises(InputError, match="starts from noise"):
        booster.boost(latents, stochastic=sde)


def test_repr_and_fingerprint(booster, latent_booster):
    assert repr(booster).startswith("Booster(unnamed: ×2, ")
    assert "kl autoencoder of 4 channels, 2× smaller" in repr(latent_booster)
    again = Booster(merge(booster.graph, booster.parameters), *parts(booster), name="renamed")
    assert again.fingerprint == booster.fingerprint != latent_booster.fingerprint
    name = next(iter(booster.parameters))
    changed = {**booster.parameters, name: booster.parameters[name] + 1e-3}
    assert Booster(merge(booster.graph, changed), *parts(booster)).fingerprint != booster.fingerprint
