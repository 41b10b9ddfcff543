"""Training objectives: the loss, the distribution of its times, and the network inputs that it needs.

An objective is a frozen dataclass whose fields are its settings; `config.objective` names one, such as
`"flow(time='logit_normal')"`. A new one is a class in a file and a line in `OBJECTIVES`.
"""

import dataclasses
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import jax
from jaxtyping import Array, Float, Key

from fmboost_jax.errors import InputError
from fmboost_jax.flow.loss import TIME_SAMPLERS, flow_matching_loss
from fmboost_jax.flow.meanflow import MeanFlow
from fmboost_jax.flow.paths import Path
from fmboost_jax.flow.shortcut import Shortcut
from fmboost_jax.registry import build

# (x, t, second_time=None, examples=slice(None)) → velocity, float32. `examples` selects the examples of the batch that
# x holds, so that the network gets their conditioning.
Network = Callable[..., Array]


@runtime_checkable
class Objective(Protocol):
    """The interface that `fmboost_jax.training.step` and the samplers use.

    An objective whose loss treats examples together, as `Shortcut` does, has an attribute `group`: the number of
    consecutive examples that must be on one device. Without it, examples are independent.
    """

    @property
    def time_inputs(self) -> int:
        """Times that the network reads: 1, or 2 with a second time."""
        ...

    @property
    def needs_teacher(self) -> bool:
        """Whether the loss evaluates the averaged weights too."""
        ...

    def loss(
        self,
        velocity_fn: Network,
        path: Path,
        x0: Float[Array, "b *d"],
        x1: Float[Array, "b *d"],
        keys: Key[Array, "b"],
        teacher_fn: Network | None = None,
    ) -> Float[Array, "b"]:
        """Loss of each example, float32; it draws times and noise from the example's key."""
        ...

    def second_time(self, t: Float[Array, "b"], arrival: Float[Array, "b"]) -> Float[Array, "b"] | None:
        """The network's second time for a step from t to `arrival`; None for networks with one time."""
        ...

    def check_steps(self, steps: int) -> None:
        """Refuse a number of steps that the network was not trained for, with an InputError."""
        ...


@dataclasses.dataclass(frozen=True)
class FlowMatching:
    """Regression of the path's velocity (Lipman et al. 2022, arXiv 2210.02747, equation 9).

    Attributes:
        time: entry of `fmboost_jax.flow.loss.TIME_SAMPLERS`, with its settings. Default: "uniform".
    """

    time: str = "uniform"

    time_inputs = 1
    needs_teacher = False

    def __post_init__(self):
        build("time distribution", self.time, TIME_SAMPLERS)

    def loss(
        self,
        velocity_fn: Network,
        path: Path,
        x0: Float[Array, "b *d"],
        x1: Float[Array, "b *d"],
        keys: Key[Array, "b"],
        teacher_fn: Network | None = None,
    ) -> Float[Array, "b"]:
        """Mean square error of each example, see `fmboost_jax.flow.loss.flow_matching_loss`.

        Args:
            velocity_fn: (x, t) → velocity.
            path: joins x0 and x1.
            x0: source.
            x1: target.
            keys: one typed key for each example.
            teacher_fn: not used.
        """
        t = build("time distribution", self.time, TIME_SAMPLERS)(keys)
        noise = None
        if path.sigma_min:
            noise_keys = jax.vmap(lambda key: jax.random.fold_in(key, 1))(keys)
            noise = jax.vmap(lambda key: jax.random.normal(key, x1.shape[1:]))(noise_keys)
        return flow_matching_loss(velocity_fn, path, x0, x1, t, noise)

    def second_time(self, t: Float[Array, "b"], arrival: Float[Array, "b"]) -> None:
        """None: the network reads t alone."""
        return

    def check_steps(self, steps: int) -> None:
        """Accept every number of steps; the solver checks it."""


@dataclasses.dataclass(frozen=True)
class Reflow(FlowMatching):
    """Flow matching on pairs (x0, x1) of a trained flow: x1 is its result for x0.

    The paths between such pairs cross less, so the new flow is straighter and needs fewer steps (rectified flow, Liu et
    al. 2022, arXiv 2209.03003, section 2.2). `python -m fmboost_jax.precompute --teacher` makes the pairs; each record
    keeps its noise, so that x0 and x1 remain paired.
    """


OBJECTIVES: dict[str, Callable[..., Objective]] = {
    "flow": FlowMatching,
    "shortcut": Shortcut,
    "meanflow": MeanFlow,
    "reflow": Reflow,
}


def recommended_steps(objective: Objective) -> int:
    """Return 1 for an objective whose network takes whole steps (it reads a second time), 4 for the others."""
    return 1 if objective.time_inputs == 2 else 4


def make_objective(text: str) -> Objective:
    """Return the objective that a config names: an entry of `OBJECTIVES`, with its settings.

    Raises:
        InputError: an unknown name or setting.
    """
    return build("objective", text, OBJECTIVES)


def sampling_objective(text: str, time_inputs: int) -> Objective:
    """Return the objective that determines how a trained network is sampled.

    For networks with one time it is flow matching, even for an unknown name: all of them are sampled alike, and the
    name may belong to an extension that is not imported.

    Raises:
        InputError: an objective of the table with another number of times than the network's, or an unknown one for a
            network with two.
    """
    if time_inputs == 1 and text.partition("(")[0] not in OBJECTIVES:
        return FlowMatching()
    objective = make_objective(text)
    if objective.time_inputs != time_inputs:
        raise InputError(
            f"objective {text} needs a network with {objective.time_inputs} time input(s), found {time_inputs}"
        )
    return objective if time_inputs == 2 else FlowMatching()
