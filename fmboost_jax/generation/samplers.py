"""Samplers of diffusion and flow models, by the classes that diffusers calls schedulers."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np

from fmboost_jax.errors import InputError
from fmboost_jax.generation.noise_schedules import (
    DiffusionSchedule,
    check_choices,
    respaced,
    timesteps_of,
)
from fmboost_jax.generation.sampling import Tables, make_tables
from fmboost_jax.registry import choose


@runtime_checkable
class Sampler(Protocol):
    """What the entries of `SAMPLERS` make."""

    def tables(self, steps: int) -> Tables:
        """Weights of `steps` steps; raises InputError for a number that the sampler cannot take."""
        ...


def sampler_from_config(config: Mapping[str, Any]) -> Sampler:
    """Build the sampler that a diffusers `scheduler_config.json` describes.

    Args:
        config: contents of the file; settings that its scheduler does not know are ignored, as diffusers does.

    Raises:
        InputError: a scheduler without an entry in `SAMPLERS`, or a setting that its entry cannot follow.
    """
    name = config.get("_class_name")
    if not isinstance(name, str):
        raise InputError("scheduler config: expected the scheduler's name in _class_name, found none")
    kind = choose("scheduler", name, SAMPLERS)
    for setting, expected in kind.fixed.items():
        if bool(config.get(setting)) != expected:
            found = config.get(setting)
            raise InputError(f"{name} with {setting}={found!r} is not supported; expected {expected}")
    fields = {field.name for field in dataclasses.fields(kind)}
    settings = {setting: value for setting, value in config.items() if setting in fields}
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()})


@dataclasses.dataclass(frozen=True)
class DDIM(DiffusionSchedule):
    """Denoising diffusion implicit models, deterministic (arXiv 2010.02502, equation 12 with σ = 0).

    Attributes:
        clip_sample: clip the estimate of x₀ to ±`clip_sample_range`.
        set_alpha_to_one: end at ᾱ = 1; otherwise at ᾱ of timestep 0.
    """

    fixed: ClassVar[dict[str, bool]] = {"thresholding": False}
    clip_sample: bool = True
    clip_sample_range: float = 1.0
    set_alpha_to_one: bool = True

    def tables(self, steps: int) -> Tables:
        """Weights of `steps` steps."""
        times = np.round(self.spaced(steps)).astype(int)
        signal = self.signal().astype(np.float64)
        following = times - self.num_train_timesteps // steps
        last = 1.0 if self.set_alpha_to_one else signal[0]
        now, then = signal[times], np.where(following >= 0, signal[following], last)
        estimate = _estimate(self.prediction_type, now)
        with np.errstate(divide="ignore", invalid="ignore"):
            noise = {
                "epsilon": _pair(0 * now, 0 * now + 1),
                "sample": _pair(1 / np.sqrt(1 - now), -np.sqrt(now / (1 - now))),
                "v_prediction": _pair(np.sqrt(1 - now), np.sqrt(now)),
            }[self.prediction_type]
        direction = np.sqrt(1 - then)
        return make_tables(
            times,
            estimate=estimate,
            states=direction * noise[:, 0],
            outputs=direction * noise[:, 1],
            estimates=np.sqrt(then),
            clip=self.clip_sample_range if self.clip_sample else None,
        )


@dataclasses.dataclass(frozen=True)
class LCM(DiffusionSchedule):
    """Multistep consistency sampling of latent consistency models (arXiv 2310.04378, algorithm 3).

    Attributes:
        original_inference_steps: number of timesteps that the model was distilled on.
        clip_sample, clip_sample_range: as for DDIM.
        timestep_scaling: steepness of the boundary condition near timestep 0.
    """

    fixed: ClassVar[dict[str, bool]] = {"thresholding": False}
    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: str = "scaled_linear"
    original_inference_steps: int = 50
    clip_sample: bool = False
    clip_sample_range: float = 1.0
    timestep_scaling: float = 10.0

    def tables(self, steps: int) -> Tables:
        """Weights of `steps` steps."""
        self.check_steps(steps, self.original_inference_steps)
        count = self.original_inference_steps
        original = np.arange(count, 0, -1) * (self.num_train_timesteps // count) - 1
        times = original[np.floor(np.linspace(0, count, steps, endpoint=False)).astype(int)]
        signal = self.signal().astype(np.float64)[times]
        following = np.append(signal[1:], 1.0)
        scaled = times * self.timestep_scaling
        skip, out = 0.25 / (scaled**2 + 0.25), scaled / np.sqrt(scaled**2 + 0.25)
        return make_tables(
            times,
            estimate=_estimate(self.prediction_type, signal),
            states=np.sqrt(following) * skip,
            estimates=np.sqrt(following) * out,
            noise=np.sqrt(1 - following),
            clip=self.clip_sample_range if self.clip_sample else None,
        )


@dataclasses.dataclass(frozen=True)
class PNDM(DiffusionSchedule):
    """Pseudo linear multistep method of order 4 (arXiv 2202.09778, equations 9 and 12), which Stable Diffusion 1 ships.

    Attributes:
        set_alpha_to_one: end at ᾱ = 1; otherwise at ᾱ of timestep 0.
    """

    fixed: ClassVar[dict[str, bool]] = {"rescale_betas_zero_snr": False, "skip_prk_steps": True}
    set_alpha_to_one: bool = False

    def __post_init__(self):
        super().__post_init__()
        check_choices(self, {"prediction_type": ("epsilon", "v_prediction")})

    def tables(self, steps: int) -> Tables:
        """Weights of `steps` steps; one row more from 2 steps on, since the first step is done twice."""
        spaced = np.round(self.spaced(steps)).astype(int)
        times = np.insert(spaced, 1, spaced[1]) if steps > 1 else spaced
        signal = self.signal().astype(np.float64)
        last = 1.0 if self.set_alpha_to_one else signal[0]
        states, outputs = np.zeros((len(times), 2)), np.zeros((len(times), 5))
        stride = self.num_train_timesteps // steps
        kept: list[int] = []
        for row, time in enumerate(times):
            # The second evaluation improves the first step, from the state before it.
            again = row == 1
            start, end = (time + stride, time) if again else (time, time - stride)
            if again:
                weights = {row: 0.5, kept[-1]: 0.5}
            else:
                kept = [*kept[-3:], row]
                order = _ADAMS_BASHFORTH[len(kept) - 1]
                weights = dict(zip(reversed(kept), order, strict=True))
            now, then = signal[start], signal[end] if end >= 0 else last
            factor = np.sqrt(then / now)
            slope = -(then - now) / (now * np.sqrt(1 - then) + np.sqrt(now * (1 - now) * then))
            if self.prediction_type == "v_prediction":
                factor, slope = factor + slope * np.sqrt(1 - now), slope * np.sqrt(now)
            states[row, int(again)] = factor
            for evaluation, weight in weights.items():
                outputs[row, row - evaluation] = slope * weight
        return make_tables(times, states=states, outputs=outputs)


# Weights of the newest first, by the number of outputs there are (Hairer, Nørsett, Wanner: Solving ODEs I, III.1).
_ADAMS_BASHFORTH = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


@dataclasses.dataclass(frozen=True)
class Euler(DiffusionSchedule):
    """Euler's method in the noise level σ (arXiv 2206.00364, algorithm 2 without churn and correction).

    Attributes:
        interpolation_type: "linear" takes the levels of the timesteps; "log_linear" spaces them evenly in log σ.
        use_karras_sigmas, use_exponential_sigmas: other spacings of the levels.
        sigma_min, sigma_max: their ends (default: the schedule's).
        timestep_type: "continuous" gives a network of v the time 0.25 · log σ.
        final_sigmas_type: level that the last step ends at: "zero" or "sigma_min", the schedule's smallest.
    """

    fixed: ClassVar[dict[str, bool]] = {"use_beta_sigmas": False}
    timestep_spacing: str = "linspace"
    interpolation_type: str = "linear"
    use_karras_sigmas: bool = False
    use_exponential_sigmas: bool = False
    sigma_min: float | None = None
    sigma_max: float | None = None
    timestep_type: str = "discrete"
    final_sigmas_type: str = "zero"

    def __post_init__(self):
        super().__post_init__()
        check_choices(
            self,
            {
                "interpolation_type": ("linear", "log_linear"),
                "timestep_type": ("discrete", "continuous"),
                "final_sigmas_type": ("zero", "sigma_min"),
            },
        )

    def tables(self, steps: int) -> Tables:
        """Weights of `steps` steps."""
        times, levels, known = self.spaced(steps), None, self.levels()
        if self.interpolation_type == "linear":
            levels = np.interp(times, np.arange(len(known)), known)
        else:
            levels = respaced("exponential", known[-1], known[0], steps + 1)[: steps + 1]
        if self.use_karras_sigmas or self.use_exponential_sigmas:
            kind = "karras" if self.use_karras_sigmas else "exponential"
            ends = self.sigma_max or levels[0], self.sigma_min or levels[-1]
            levels = respaced(kind, *ends, steps)
            times = timesteps_of(levels, known)
        last = 0.0 if self.final_sigmas_type == "zero" else known[0]
        levels = np.append(levels, last)
        now, then = levels[:steps], levels[1 : steps + 1]
        if self.timestep_type == "continuous" and self.prediction_type == "v_prediction":
            times = 0.25 * np.log(now)
        start = levels.max() if self.timestep_spacing != "leading" else np.hypot(levels.max(), 1)
        return _in_levels(times, self.prediction_type, now, then, start)


@dataclasses.dataclass(frozen=True)
class EulerAncestral(DiffusionSchedule):
    """Euler's method with noise added after every step (k-diffusion's `sample_euler_ancestral`)."""

    fixed: ClassVar[dict[str, bool]] = {}
    timestep_spacing: str = "linspace"

    def __post_init__(self):
        super().__post_init__()
        check_choices(self, {"prediction_type": ("epsilon", "v_prediction")})

    def tables(self, steps: int) -> Tables:
        """Weights of `steps` steps."""
        times, known = self.spaced(steps), self.levels()
        now = np.interp(times, np.arange(len(known)), known)
        then = np.append(now[1:], 0.0)
        added = np.sqrt(then**2 * (now**2 - then**2) / now**2)
        start = now.max() if self.timestep_spacing != "leading" else np.hypot(now.max(), 1)
        return _in_levels(times, self.prediction_type, now, np.sqrt(then**2 - added**2), start, added)


@dataclasses.dataclass(frozen=True)
class DPMSolverMultistep(DiffusionSchedule):
    """DPM-Solver++ of order 1 or 2 (arXiv 2211.01095, algorithm 2), or its SDE (equation 17 there).

    Attributes:
        solver_order: 1 or 2.
        algorithm_type: "dpmsolver++" or "sde-dpmsolver++", which adds noise.
        solver_type: "midpoint" or "heun": how the second order's term is approximated.
        lower_order_final: last step of order 1 where there are fewer than 15.
        euler_at_final: last step of order 1.
        use_karras_sigmas: another spacing of the noise levels.
        sigma_min, sigma_max: their ends (default: the schedule's).
        final_sigmas_type: level that the last step ends at: "zero" or "sigma_min".
        lambda_min_clipped: bound of the log signal-to-noise ratio, below which no timestep is taken.
    """

    fixed: ClassVar[dict[str, bool]] = {
        "thresholding": False,
        "use_beta_sigmas": False,
        "use_exponential_sigmas": False,
        "use_lu_lambdas": False,
        "use_flow_sigmas": False,
        "variance_type": False,
    }
    timestep_spacing: str = "linspace"
    solver_order: int = 2
    algorithm_type: str = "dpmsolver++"
    solver_type: str = "midpoint"
    lower_order_final: bool = True
    euler_at_final: bool = False
    use_karras_sigmas: bool = False
    sigma_min: float | None = None
    sigma_max: float | None = None
    final_sigmas_type: str = "zero"
    lambda_min_clipped: float = float("-inf")

    def __post_init__(self):
        super().__post_init__()
        check_choices(
            self,
            {
                "solver_order": (1, 2),
                "algorithm_type": ("dpmsolver++", "sde-dpmsolver++"),
                "solver_type": ("midpoint", "heun"),
                "final_sigmas_type": ("zero", "sigma_min"),
            },
        )

    def tables(self, steps: int) -> Tables:
        """Weights of `steps` steps."""
        times, levels = self._times_and_levels(steps)
        last = 0.0 if self.final_sigmas_type == "zero" else self.levels()[0]
        levels = np.append(levels, last)
        signal = 1 / np.sqrt(levels**2 + 1)
        noise = levels * signal
        with np.errstate(divide="ignore"):
            log_snr = np.log(signal) - np.log(noise)
        jumps = np.diff(log_snr)
        random = self.algorithm_type == "sde-dpmsolver++"
        decay = np.expm1(-2 * jumps) if random else np.expm1(-jumps)
        states = noise[1:] / noise[:-1] * (np.exp(-jumps) if random else 1.0)
        newest, older = -signal[1:] * decay, np.zeros(steps)
        for row in range(1, steps):
            if self.solver_order == 1 or (row == steps - 1 and self._ends_in_first_order(steps)):
                continue
            if self.solver_type == "midpoint":
                slope = newest[row] / 2
            else:
                slope = signal[row + 1] * (decay[row] / (2 * jumps[row] if random else jumps[row]) + 1)
            slope *= jumps[row] / jumps[row - 1]
            newest[row] += slope
            older[row] = -slope
        added = noise[1:] * np.sqrt(np.maximum(-decay, 0)) if random else np.zeros(steps)
        return make_tables(
            times,
            estimate=_estimate(self.prediction_type, signal[:-1] ** 2),
            states=states,
            estimates=np.stack([newest, older], 1),
            noise=added,
        )

    def _ends_in_first_order(self, steps: int) -> bool:
        return self.euler_at_final or self.final_sigmas_type == "zero" or (self.lower_order_final and steps < 15)

    def _times_and_levels(self, steps: int) -> tuple[np.ndarray, np.ndarray]:
        self.check_steps(steps, self.num_train_timesteps - 1)
        known = self.levels()
        count = len(known) - int(np.searchsorted(-np.log(known[::-1]), self.lambda_min_clipped))
        if self.use_karras_sigmas:
            levels = respaced("karras", self.sigma_max or known[-1], self.sigma_min or known[0], steps)
            times = timesteps_of(levels, known)
            return np.floor(times) if self.beta_schedule == "squaredcos_cap_v2" else np.round(times), levels
        if self.timestep_spacing == "linspace":
            times = np.round(np.linspace(0, count - 1, steps + 1))[:0:-1]
        elif self.timestep_spacing == "leading":
            times = np.arange(steps, 0, -1) * (count // (steps + 1)) + self.steps_offset
        else:
            times = np.round(np.arange(count, 0, -self.num_train_timesteps / steps))[:steps] - 1
        return times, np.interp(times, np.arange(len(known)), known)


@dataclasses.dataclass(frozen=True)
class FlowMatchEuler:
    """Euler's method for flow models: x_σ = (1 − σ) · x₀ + σ · ε, the network predicts ε − x₀ (arXiv 2403.03206).

    Attributes:
        num_train_timesteps: factor from σ to the timestep that the network is given.
        shift: σ → shift · σ / (1 + (shift − 1) · σ); larger spends more steps on noise.
        use_dynamic_shifting: shift by `mu` instead.
        time_shift_type: σ → e / (e + 1/σ − 1) with e = exp(mu) ("exponential") or mu ("linear").
        mu: strength of the dynamic shift; each pipeline has its formula.
        shift_terminal: stretch the levels so that the last one is this.
        use_karras_sigmas, use_exponential_sigmas: other spacings of the levels.
        stochastic_sampling: replace the noise after every step.
        linear_levels: space the levels 1 … 1/steps evenly before they are shifted; otherwise the timesteps.
        base_shift, max_shift, base_image_seq_len, max_image_seq_len: line from the number of tokens to `mu`.
    """

    fixed: ClassVar[dict[str, bool]] = {"use_beta_sigmas": False, "invert_sigmas": False}
    num_train_timesteps: int = 1000
    shift: float = 1.0
    use_dynamic_shifting: bool = False
    time_shift_type: str = "exponential"
    mu: float | None = None
    shift_terminal: float | None = None
    use_karras_sigmas: bool = False
    use_exponential_sigmas: bool = False
    stochastic_sampling: bool = False
    linear_levels: bool = False
    base_shift: float = 0.5
    max_shift: float = 1.15
    base_image_seq_len: int = 256
    max_image_seq_len: int = 4096

    def __post_init__(self):
        check_choices(self, {"time_shift_type": ("exponential", "linear")})

    def line_mu(self, tokens: int) -> float:
        """`mu` of an image of so many tokens, as FLUX.1 and its successors compute it."""
        slope = (self.max_shift - self.base_shift) / (self.max_image_seq_len - self.base_image_seq_len)
        return self.base_shift + slope * (tokens - self.base_image_seq_len)

    def tables(self, steps: int) -> Tables:
        """Weights of `steps` steps."""
        if not 1 <= steps <= self.num_train_timesteps:
            raise InputError(f"the sampler takes 1 to {self.num_train_timesteps} steps, found {steps}")
        if self.use_dynamic_shifting and self.mu is None:
            raise InputError("a scheduler with use_dynamic_shifting needs mu, found none")
        ends = np.asarray((1.0, 1 / self.num_train_timesteps))
        if self.linear_levels:
            ends = np.asarray((1.0, 1 / steps))
        elif not self.use_dynamic_shifting:
            # Stable Diffusion 3's scheduler shifts the ends, and then all levels once more.
            ends = self._shifted(ends)
        levels = np.linspace(ends[0], ends[1], steps)
        levels = self._shifted(levels)
        if self.shift_terminal and steps > 1:
            levels = 1 - (1 - levels) * (1 - self.shift_terminal) / (1 - levels[-1])
        if self.use_karras_sigmas or self.use_exponential_sigmas:
            kind = "karras" if self.use_karras_sigmas else "exponential"
            levels = respaced(kind, levels[0], levels[-1], steps)
        then = np.append(levels[1:], 0.0)
        times = levels * self.num_train_timesteps
        if self.stochastic_sampling:
            return make_tables(times, states=1 - then, outputs=-(1 - then) * levels, noise=then)
        return make_tables(times, states=np.ones(steps), outputs=then - levels)

    def _shifted(self, levels: np.ndarray) -> np.ndarray:
        if not self.use_dynamic_shifting or self.mu is None:
            return self.shift * levels / (1 + (self.shift - 1) * levels)
        strength = np.exp(self.mu) if self.time_shift_type == "exponential" else self.mu
        return strength / (strength + 1 / levels - 1)


# By the class that a scheduler_config.json names in `_class_name`.
SAMPLERS: dict[str, Any] = {
    "DDIMScheduler": DDIM,
    "DPMSolverMultistepScheduler": DPMSolverMultistep,
    "EulerAncestralDiscreteScheduler": EulerAncestral,
    "EulerDiscreteScheduler": Euler,
    "FlowMatchEulerDiscreteScheduler": FlowMatchEuler,
    "LCMScheduler": LCM,
    "PNDMScheduler": PNDM,
}


def _estimate(prediction: str, signal: np.ndarray) -> np.ndarray:
    """Weights of the state and of the output in the estimate of x₀ at ᾱ = `signal`."""
    if prediction == "sample":
        return _pair(0 * signal, 0 * signal + 1)
    if prediction == "v_prediction":
        return _pair(np.sqrt(signal), -np.sqrt(1 - signal))
    with np.errstate(divide="ignore"):
        return _pair(1 / np.sqrt(signal), -np.sqrt((1 - signal) / signal))


def _in_levels(times, prediction: str, now, then, start, added=None) -> Tables:
    """Euler steps from noise level `now` to `then`, of states x₀ + σ · ε."""
    estimate = {
        "epsilon": _pair(0 * now + 1, -now),
        "sample": _pair(0 * now, 0 * now + 1),
        "v_prediction": _pair(1 / (now**2 + 1), -now / np.sqrt(now**2 + 1)),
    }[prediction]
    ratio = then / now
    return make_tables(
        times,
        noise_scale=start,
        inputs=1 / np.sqrt(now**2 + 1),
        states=ratio + (1 - ratio) * estimate[:, 0],
        outputs=(1 - ratio) * estimate[:, 1],
        noise=added,
    )


def _pair(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return np.stack([first, second], 1)
