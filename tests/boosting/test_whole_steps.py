"""Networks with two times: boosting takes whole steps, by default the number in the bundle."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmboost_jax.boosting.booster import Booster
from fmboost_jax.boosting.bundle import BundleConfig, read_bundle, write_bundle
from fmboost_jax.boosting.folder import run_settings
from fmboost_jax.errors import InputError
from fmboost_jax.flow.boost import boost_latents
from fmboost_jax.flow.coupling import Coupling
from fmboost_jax.flow.objectives import make_objective
from fmboost_jax.flow.sde import StochasticSolver
from fmboost_jax.flow.solvers import Solver
from fmboost_jax.images.value_range import to_float, to_uint8
from fmboost_jax.interop.autoencoders import load_first_stage
from fmboost_jax.metrics.images import psnr
from fmboost_jax.models.first_stage import FirstStageConfig
from fmboost_jax.models.parameters import split
from fmboost_jax.models.unet import UNet, UNetConfig
from fmboost_jax.parallel.mesh import make_mesh
from fmboost_jax.training.config import EvaluateConfig, SourceConfig, TrainConfig, TrainingConfig
from fmboost_jax.training.evaluation import make_evaluate
from tests.random_models import random_model

UNET = UNetConfig(
    in_channels=6,
    out_channels=3,
    model_channels=32,
    channel_mult=(1,),
    num_res_blocks=1,
    dim_head=16,
    time_inputs=2,
)
COUPLING = Coupling(noise_step=100)


@pytest.fixture(scope="module")
def network():
    return random_model(UNet, UNET)


@pytest.fixture(scope="module")
def booster(network):
    return Booster(network, load_first_stage("identity"), COUPLING, 2, objective="shortcut")


def normal(*shape):
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def test_one_step_is_the_mean_velocity_added(network):
    """x0 + u(x0, t = 0, arrival = 1), whose second time is 0 for a shortcut model and 1 for MeanFlow."""
    low, noise = jnp.asarray(normal(2, 4, 4, 3)), jnp.asarray(normal(2, 4, 4, 3)[::-1])
    x0, context = COUPLING.couple(low, (4, 4), noise)
    for objective, second in (("shortcut", 0.0), ("meanflow", 1.0)):
        expected = x0 + network.velocity(x0, jnp.zeros(2), context, second_time=jnp.full(2, second))
        options = {"coupling": COUPLING, "solver": Solver(steps=1), "objective": make_objective(objective)}
        np.testing.assert_allclose(boost_latents(network.velocity, low, noise, **options), expected, atol=1e-5)
        guided = boost_latents(network.velocity, low, noise, guidance=1.0, **options)
        np.testing.assert_allclose(guided, expected, atol=1e-5)


def test_a_booster_takes_one_step_or_the_powers_of_two(booster):
    latents = normal(1, 4, 4, 3)
    default = np.asarray(booster.boost(latents))
    np.testing.assert_array_equal(booster.boost(latents, steps=1), default)
    assert np.abs(booster.boost(latents, steps=2) - default).max() > 1e-3
    assert run_settings([booster], seed=0)["steps"] == 1
    states = booster.boost(latents, steps=2, return_trajectory=True)
    np.testing.assert_allclose(states[-1], booster.boost(latents, steps=2), atol=1e-5)
    for options, message in (
        ({"steps": 3}, "steps must be a power of two from 1 to 64 for a shortcut model, found 3"),
        ({"method": "rk4"}, "takes whole steps; method must be euler, found rk4"),
        ({"solver": Solver("midpoint", 2)}, "method must be euler, found midpoint"),
    ):
        with pytest.raises(InputError, match=message):
            booster.boost(latents, **options)
    noisy = Booster(
        random_model(UNet, UNET), booster.first_stage, Coupling(start="noise"), 2, objective="meanflow", steps=2
    )
    assert (noisy.steps, noisy.fingerprint != booster.fingerprint) == (2, True)
    with pytest.raises(InputError, match="cannot sample the SDE"):
        noisy.boost(latents, stochastic=StochasticSolver(steps=2))
    with pytest.raises(InputError, match=r"objective flow needs a network with 1 time input\(s\), found 2"):
        Booster(random_model(UNet, UNET), booster.first_stage, COUPLING, 2)


def test_a_bundle_names_objective_and_steps(network, booster, tmp_path):
    config = BundleConfig(
        UNET, COUPLING, "linear", 2, 16, 32, booster.first_stage.spec, 7, objective="shortcut", steps=2
    )
    write_bundle(tmp_path, split(network)[1], config)
    assert read_bundle(tmp_path)[1] == config
    loaded = Booster.load(tmp_path)
    assert (loaded.steps, loaded.objective) == (2, make_objective("shortcut"))
    latents = normal(1, 4, 4, 3)
    np.testing.assert_allclose(loaded.boost(latents), booster.boost(latents, steps=2), atol=1e-5)
    file = tmp_path / "config.json"
    written = json.loads(file.read_text())
    assert (written["objective"], written["steps"]) == ("shortcut", 2)
    for change, message in (
        ({"steps": 3}, "power of two"),
        ({"steps": 0}, "steps must be 1 or more"),
        ({"objective": "flow"}, "needs a network with 1 time"),
    ):
        file.write_text(json.dumps({**written, **change}))
        with pytest.raises(InputError, match=message):
            read_bundle(tmp_path)


def test_a_bundle_of_a_plain_flow_reads_as_version_0_1_wrote_it(tmp_path):
    config = dataclasses.replace(UNET, time_inputs=1)
    bundle = BundleConfig(config, COUPLING, "linear", 2, 16, 32, load_first_stage("identity").spec, 7)
    write_bundle(tmp_path, split(random_model(UNet, config))[1], bundle)
    assert not {"network", "objective", "steps"} & json.loads((tmp_path / "config.json").read_text()).keys()
    assert read_bundle(tmp_path)[1] == bundle


def test_evaluation_in_training_takes_whole_steps(network):
    config = TrainingConfig(
        objective="shortcut",
        architecture=UNET,
        first_stage=FirstStageConfig(kind="identity", path=""),
        source=SourceConfig(noise_step=100),
        train=TrainConfig(batch_size=2),
        evaluate=EvaluateConfig(method="euler", steps=1),
    )
    mesh = make_mesh({"data": 1, "fsdp": 1, "spatial": 1}, jax.devices()[:1])
    stage = load_first_stage("identity")
    high = np.tanh(normal(3, 16, 16, 3))  # one more than a batch
    pairs = {"low": np.reshape([0.9, 0.8, 0.3], (3, 1, 1, 1)).astype(np.float32) * high, "high": high}
    pairs["photograph"] = to_uint8(0.5 * high)
    with jax.set_mesh(mesh):
        scores, image = make_evaluate(config, stage, mesh)(split(network)[1], pairs)
    assert np.isfinite(list(scores.values())).all()
    assert scores["low_res/psnr"] == pytest.approx(float(np.mean(psnr(pairs["low"], high))), rel=1e-4)
    # The photographs are other images than the decoded latents: each score names what it compares with.
    for name, shown in (("photograph/low_res/psnr", pairs["low"]), ("photograph/decoded/psnr", high)):
        assert scores[name] == pytest.approx(float(np.mean(psnr(shown, to_float(pairs["photograph"])))), rel=1e-4)
    assert scores["photograph/psnr"] != pytest.approx(scores["psnr"], rel=1e-2)
    assert image.shape[0] > 3 * 16  # a row for each pair
    config = dataclasses.replace(config, evaluate=EvaluateConfig())
    with pytest.raises(InputError, match=r"method must be euler, found rk4; set evaluate\.method and evaluate\.steps"):
        make_evaluate(config, stage, mesh)
