"""Noise schedules of diffusion models: variances, timesteps and noise levels of a sampler's steps.

The names are those of a `scheduler_config.json`. Variances keep the rounding to float32 that the models were trained
with; everything after them is float64.
"""

import dataclasses
import math
from typing import Literal

import numpy as np
from jaxtyping import Float

from fmboost_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class DiffusionSchedule:
    """A discrete variance-preserving diffusion: x_t = √ᾱ_t · x₀ + √(1 − ᾱ_t) · ε.

    Attributes:
        num_train_timesteps: number of timesteps T of the training.
        beta_start, beta_end: first and last variance of one timestep.
        beta_schedule: "linear", "scaled_linear" (linear in √β) or "squaredcos_cap_v2" (ᾱ is a squared cosine).
        trained_betas: the variances themselves; they replace the three settings above.
        rescale_betas_zero_snr: rescale the variances so that the last ᾱ is 0 (arXiv 2305.08891, algorithm 1).
        prediction_type: what the network predicts: the noise ε, x₀, or v = √ᾱ · ε − √(1 − ᾱ) · x₀.
        timestep_spacing: which timesteps a sampler visits (arXiv 2305.08891, table 2).
        steps_offset: number that "leading" timesteps are increased by.
    """

    num_train_timesteps: int = 1000
    beta_start: float = 0.0001
    beta_end: float = 0.02
    beta_schedule: str = "linear"
    trained_betas: tuple[float, ...] | None = None
    rescale_betas_zero_snr: bool = False
    prediction_type: str = "epsilon"
    timestep_spacing: str = "leading"
    steps_offset: int = 0

    def __post_init__(self):
        expected = {
            "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2"),
            "prediction_type": ("epsilon", "sample", "v_prediction"),
            "timestep_spacing": ("leading", "linspace", "trailing"),
        }
        check_choices(self, expected)

    def signal(self) -> Float[np.ndarray, " T"]:
        """ᾱ of each timestep, rounded to float32."""
        count = self.num_train_timesteps
        if self.trained_betas is not None:
            betas = np.asarray(self.trained_betas, np.float32)
        elif self.beta_schedule == "linear":
            betas = np.linspace(self.beta_start, self.beta_end, count, dtype=np.float32)
        elif self.beta_schedule == "scaled_linear":
            betas = np.linspace(self.beta_start**0.5, self.beta_end**0.5, count, dtype=np.float32) ** 2
        else:
            cosine = np.cos((np.arange(count + 1) / count + 0.008) / 1.008 * math.pi / 2) ** 2
            betas = np.minimum(1 - cosine[1:] / cosine[:-1], 0.999).astype(np.float32)
        signal = _products(np.float32(1) - betas)
        if self.rescale_betas_zero_snr:
            root = np.sqrt(signal)
            root = (root - root[-1]) * (root[0] / (root[0] - root[-1]))
            squares = root**2
            # Through the variances of single timesteps and back, as the models were trained.
            ratios = np.concatenate([squares[:1], squares[1:] / squares[:-1]])
            signal = _products(np.float32(1) - (np.float32(1) - ratios))
        return signal

    def levels(self) -> Float[np.ndarray, " T"]:
        """Noise-to-signal ratio √((1 − ᾱ) / ᾱ) of each timestep, finite where ᾱ is 0."""
        signal = self.signal()
        if self.rescale_betas_zero_snr:
            signal[-1] = 2**-24
        return np.sqrt((np.float32(1) - signal) / signal).astype(np.float64)

    def check_steps(self, steps: int, limit: int | None = None) -> None:
        """Refuse a number of steps that the schedule cannot take.

        Raises:
            InputError: fewer than 1, or more than `limit` (default: the number of timesteps of the training).
        """
        limit = self.num_train_timesteps if limit is None else limit
        if not 1 <= steps <= limit:
            raise InputError(f"the sampler takes 1 to {limit} steps, found {steps}")

    def spaced(self, steps: int) -> Float[np.ndarray, " n"]:
        """Timesteps that a sampler of `steps` steps visits, from noise to image; not rounded for "linspace"."""
        self.check_steps(steps)
        count = self.num_train_timesteps
        if self.timestep_spacing == "linspace":
            return np.linspace(0, count - 1, steps)[::-1]
        if self.timestep_spacing == "leading":
            times = (np.arange(steps) * (count // steps))[::-1] + float(self.steps_offset)
            if times[0] >= count:
                raise InputError(f"{steps} steps with an offset of {self.steps_offset} exceed {count} timesteps")
            return times
        return np.round(np.arange(count, 0, -count / steps))[:steps] - 1.0


def check_choices(settings: object, expected: dict[str, tuple]) -> None:
    """Refuse settings whose value is not among those expected.

    Raises:
        InputError: names the setting, what was expected and what was found.
    """
    for name, values in expected.items():
        found = getattr(settings, name)
        if found not in values:
            raise InputError(f"scheduler's {name}: expected one of {', '.join(map(str, values))}, found {found!r}")


def respaced(
    kind: Literal["karras", "exponential"], largest: float, smallest: float, steps: int
) -> Float[np.ndarray, " n"]:
    """Noise levels from `largest` to `smallest`: even in σ^(1/7) (arXiv 2206.00364, equation 5), or in log σ."""
    ramp = np.linspace(0, 1, steps)
    if kind == "exponential":
        return np.exp(math.log(largest) + ramp * (math.log(smallest) - math.log(largest)))
    root = 1 / 7
    return (largest**root + ramp * (smallest**root - largest**root)) ** 7


def timesteps_of(levels: Float[np.ndarray, " n"], known: Float[np.ndarray, " T"]) -> Float[np.ndarray, " n"]:
    """Timesteps, between whole ones, at which a schedule's `known` levels take the given ones (linear in log σ)."""
    return np.interp(np.log(np.maximum(levels, 1e-10)), np.log(known), np.arange(len(known)))


def _products(factors: np.ndarray) -> np.ndarray:
    return np.cumprod(factors, dtype=np.float64).astype(np.float32)
