"""Whole loops of every sampler against diffusers' schedulers, with a formula as the network."""

import functools

import diffusers
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import strategies as st

from fmboost_jax.errors import InputError
from fmboost_jax.generation.samplers import SAMPLERS, FlowMatchEuler, sampler_from_config
from fmboost_jax.generation.sampling import sample
from tests.conftest import relative_error

SHAPE = (2, 3, 4)
_noise = np.random.default_rng(0).standard_normal((60, *SHAPE)).astype(np.float32)


def _network(x, t, m):
    """Depends on the state and on the timestep, with outputs of about the state's size."""
    return 0.6 * x + 0.5 * m.cos(t / 300) * m.sin(2 * x) + 0.1


@functools.partial(jax.jit)
def _ours(tables):
    return sample(
        tables, lambda x, t: _network(x, t, jnp), jnp.asarray(_noise[0]), lambda i: jnp.asarray(_noise)[i + 1]
    )


def _theirs(scheduler, monkeypatch, **timesteps) -> np.ndarray:
    drawn = iter(_noise[1:])
    module = type(scheduler).__module__
    monkeypatch.setattr(f"{module}.randn_tensor", lambda *a, **k: torch.tensor(next(drawn)), raising=False)
    scheduler.set_timesteps(**timesteps)
    x = torch.tensor(_noise[0]) * getattr(scheduler, "init_noise_sigma", 1.0)
    for t in scheduler.timesteps:
        scale = getattr(scheduler, "scale_model_input", lambda x, t: x)
        x = scheduler.step(_network(scale(x, t), t.float(), torch), t, x).prev_sample
    return x.numpy()


_predictions = st.sampled_from(["epsilon", "v_prediction"])
_all_predictions = st.sampled_from(["epsilon", "v_prediction", "sample"])
_betas = {
    "beta_schedule": st.sampled_from(["scaled_linear", "linear", "squaredcos_cap_v2"]),
    "beta_start": st.just(0.00085),
    "beta_end": st.just(0.012),
    "timestep_spacing": st.sampled_from(["leading", "linspace", "trailing"]),
    "steps_offset": st.sampled_from([0, 1]),
}
_respacing = st.sampled_from([{}, {"use_karras_sigmas": True}, {"use_exponential_sigmas": True}])
_zero_or_least = st.sampled_from(["zero", "sigma_min"])
_flags = st.booleans()
OPTIONS = {
    "DDIMScheduler": {
        **_betas, "prediction_type": _all_predictions, "clip_sample": _flags, "set_alpha_to_one": _flags,
        "clip_sample_range": st.sampled_from([1.0, 2.0]),
    },
    "LCMScheduler": {
        "prediction_type": _all_predictions, "clip_sample": _flags,
        "original_inference_steps": st.sampled_from([50, 100]),
    },
    "PNDMScheduler": {
        **_betas, "prediction_type": _predictions, "set_alpha_to_one": _flags, "skip_prk_steps": st.just(True),
    },
    "EulerDiscreteScheduler": {
        **_betas, "prediction_type": _all_predictions, "final_sigmas_type": _zero_or_least, "respacing": _respacing,
        "interpolation_type": st.sampled_from(["linear", "log_linear"]),
        "timestep_type": st.sampled_from(["discrete", "continuous"]),
    },
    "EulerAncestralDiscreteScheduler": {**_betas, "prediction_type": _predictions},
    "DPMSolverMultistepScheduler": {
        **_betas, "prediction_type": _all_predictions, "final_sigmas_type": _zero_or_least, "use_karras_sigmas": _flags,
        "algorithm_type": st.sampled_from(["dpmsolver++", "sde-dpmsolver++"]), "solver_order": st.sampled_from([1, 2]),
        "solver_type": st.sampled_from(["midpoint", "heun"]), "lower_order_final": _flags, "euler_at_final": _flags,
    },
    "FlowMatchEulerDiscreteScheduler": {
        "shift": st.sampled_from([1.0, 3.0]), "shift_terminal": st.sampled_from([None, 0.1]),
        "stochastic_sampling": _flags, "respacing": _respacing,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", SAMPLERS)
@hypothesis.settings(
    max_examples=20, deadline=None, derandomize=True, suppress_health_check=list(hypothesis.HealthCheck)
)
@hypothesis.given(data=st.data())
def test_loops_agree_with_diffusers(name, data):
    options = data.draw(st.fixed_dictionaries(OPTIONS[name]))
    options.update(options.pop("respacing", {}))
    steps = data.draw(st.sampled_from([1, 2, 4, 16]))
    # diffusers itself fails there: it truncates the timesteps and then finds two that are equal.
    hypothesis.assume(not (options.get("use_karras_sigmas") and options.get("beta_schedule") == "squaredcos_cap_v2"))
    # With these three, diffusers makes a step more than it is asked for.
    more = {"interpolation_type": "log_linear", "timestep_type": "continuous", "prediction_type": "v_prediction"}
    hypothesis.assume(not more.items() <= options.items())
    if {"use_karras_sigmas", "use_exponential_sigmas", "shift_terminal"} & {name for name in options if options[name]}:
        # One level alone has no spacing; diffusers divides by nothing there.
        steps = max(steps, 2)
    # Karras' levels end at the schedule's smallest: a last step there has no length.
    hypothesis.assume(not (options.get("use_karras_sigmas") and options.get("final_sigmas_type") == "sigma_min"))
    scheduler = getattr(diffusers, name)(**options)
    with pytest.MonkeyPatch.context() as patch:
        expected = _theirs(scheduler, patch, num_inference_steps=steps)
    found = _ours(sampler_from_config({**scheduler.config, "_class_name": name}).tables(steps))
    hypothesis.assume(np.isfinite(expected).all())
    # The cosine schedule ends at noise of 20,000 times the signal, where float32 rounds diffusers' own states.
    bound = 3e-3 if options.get("beta_schedule") == "squaredcos_cap_v2" else 1e-5
    assert relative_error(found, expected) < bound


@pytest.mark.parametrize(
    "name", ["DDIMScheduler", "LCMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler"]
)
def test_zero_terminal_snr(name, monkeypatch):
    options = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "clip_sample": False}
    options |= {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"}
    scheduler = getattr(diffusers, name).from_config(options)
    expected = _theirs(scheduler, monkeypatch, num_inference_steps=4)
    found = _ours(sampler_from_config({**scheduler.config, "_class_name": name}).tables(4))
    # Euler's states begin 4096 times as large there, so that diffusers' own float32 rounds at 1e-4.
    assert relative_error(found, expected) < (3e-4 if name == "EulerDiscreteScheduler" else 1e-5)


@pytest.mark.parametrize("kind", ["exponential", "linear"])
def test_dynamic_shift(kind, monkeypatch):
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, time_shift_type=kind)
    levels = np.linspace(1, 1 / 4, 4)
    expected = _theirs(scheduler, monkeypatch, sigmas=levels, mu=1.7)
    sampler = FlowMatchEuler(use_dynamic_shifting=True, time_shift_type=kind, mu=1.7, linear_levels=True)
    assert relative_error(_ours(sampler.tables(4)), expected) < 1e-5


def test_settings_that_a_scheduler_does_not_know_are_ignored():
    config = {
        "_class_name": "EulerDiscreteScheduler",
        "skip_prk_steps": True,
        "clip_sample": False,
        "trained_betas": None,
    }
    assert sampler_from_config(config) == SAMPLERS["EulerDiscreteScheduler"]()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "_class_name"),
        ({"_class_name": "HeunDiscreteScheduler"}, "scheduler 'HeunDiscreteScheduler' is unknown; expected one of"),
        ({"_class_name": "DDIMScheduler", "thresholding": True}, "thresholding=True is not supported"),
        ({"_class_name": "PNDMScheduler"}, "skip_prk_steps=None is not supported"),
        ({"_class_name": "DDIMScheduler", "prediction_type": "score"}, "prediction_type: expected one of epsilon"),
        ({"_class_name": "LCMScheduler", "rescale_betas_zero_snr": True}, "zero terminal SNR"),
    ],
)
def test_bad_configs(config, message):
    with pytest.raises(InputError, match=message):
        sampler_from_config(config).tables(4)


@pytest.mark.parametrize(("name", "steps"), [("LCMScheduler", 51), ("DDIMScheduler", 0), ("DDIMScheduler", 1001)])
def test_bad_steps(name, steps):
    with pytest.raises(InputError, match=f"found {steps}"):
        SAMPLERS[name]().tables(steps)
