"""The training state and its update by a gradient, for every kind of training."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from fmboost_jax.models.parameters import Parameters
from fmboost_jax.runtime.barrier import cpu_optimization_barrier
from fmboost_jax.training.ema import EmaConfig, update_ema
from fmboost_jax.training.optimizer import global_norm, skip_nonfinite


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """State of a run between updates. Leaves are arrays, or their shapes or shardings.

    Attributes:
        step: number of updates so far, int32.
        parameters: trained by the optimizer.
        ema: their exponential moving average.
        optimizer: the optimizer's state.
        teacher: frozen parameters of the objective's teacher; None where it needs none.
        discriminator: `parameters` and `optimizer` of the discriminator; None where the finish has none.
    """

    step: Any
    parameters: Any
    ema: Any
    optimizer: Any
    teacher: Any = None
    discriminator: Any = None

    @classmethod
    def create(
        cls, parameters: Parameters, optimizer: optax.GradientTransformation, teacher: Parameters | None = None
    ) -> "TrainState":
        """Return the state before the first update; the average is a copy of the parameters."""
        average = jax.tree.map(jnp.copy, parameters)
        return cls(jnp.zeros((), jnp.int32), parameters, average, optimizer.init(parameters), teacher)  # pyright: ignore[reportArgumentType] (optax's stubs know no dict of arrays)

    def to_dict(self) -> dict[str, Any]:
        """Return what a checkpoint holds: the fields by name, without those that are None."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: value for name, value in fields.items() if value is not None}

    def apply_gradient(
        self,
        loss: Float[Array, ""],
        gradient: Any,
        optimizer: optax.GradientTransformationExtraArgs,
        ema: EmaConfig,
    ) -> tuple["TrainState", dict[str, Float[Array, ""]]]:
        """Update parameters and average; where loss or gradient is not finite, only the count of steps changes.

        Args:
            loss: for the metrics.
            gradient: of the parameters.
            optimizer: guarded, see `fmboost_jax.training.optimizer.guarded`.
            ema: of the average.

        Returns:
            The new state and the metrics `loss` and `gradient_norm`.
        """
        norm = global_norm(gradient)
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        count, before = self.step + 1, self.parameters
        updates, moments = optimizer.update(gradient, self.optimizer, before, finite=finite)
        parameters = skip_nonfinite(finite, optax.apply_updates(before, updates), before)
        parameters = cpu_optimization_barrier(parameters)
        averaged = before if ema.takes_in == "before" else parameters
        average = update_ema(self.ema, averaged, count, decay=ema.decay, copy_until=ema.copy_until)
        average = skip_nonfinite(finite, average, self.ema)
        state = dataclasses.replace(self, step=count, parameters=parameters, ema=average, optimizer=moments)
        return state, {"loss": loss, "gradient_norm": norm}

    def train_discriminator(
        self, gradient: Any, optimizer: optax.GradientTransformationExtraArgs, due: Bool[Array, ""], rate: float = 1.0
    ) -> "TrainState":
        """Update the discriminator where an update is due and its gradient is finite.

        Args:
            gradient: of the discriminator's parameters.
            optimizer: as for `apply_gradient`.
            due: whether this update trains it.
            rate: learning rate over that of the network.
        """
        before = self.discriminator["parameters"]
        act = due & jnp.isfinite(global_norm(gradient))
        updates, moments = optimizer.update(gradient, self.discriminator["optimizer"], before, finite=act)
        updates = jax.tree.map(lambda update: rate * update, updates)
        parameters = skip_nonfinite(act, optax.apply_updates(before, updates), before)
        return dataclasses.replace(self, discriminator={"parameters": parameters, "optimizer": moments})
