"""An objective from outside the package: it draws its own times and gives the network a second one."""

import dataclasses

import jax

from fmboost_jax.flow.loss import flow_matching_loss
from fmboost_jax.flow.objectives import OBJECTIVES


@dataclasses.dataclass(frozen=True)
class TwoTimes:
    """Flow matching of a network with t as both time inputs."""

    latest: float = 1.0

    time_inputs = 2
    needs_teacher = False

    def loss(self, velocity_fn, path, x0, x1, keys, teacher_fn=None):
        """Loss of each example."""
        t = self.latest * jax.vmap(jax.random.uniform)(keys)
        noise = jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, 1), x1.shape[1:]))(keys)
        return flow_matching_loss(lambda x, t: velocity_fn(x, t, second_time=t), path, x0, x1, t, noise)

    def second_time(self, t, arrival):
        """t again."""
        return t

    def check_steps(self, steps):
        """All are fine."""


OBJECTIVES["two_times"] = TwoTimes
