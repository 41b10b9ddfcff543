"""Velocity networks: the interface that the rest of the package uses, and the table of networks.

A new network is a file with a config (a frozen dataclass, `NetworkConfig`) and a model (`VelocityNetwork`), and a line
in `NETWORKS`. `config.network` names it; its settings are the config's section of that name.
"""

import dataclasses
from typing import Any, ClassVar, Protocol, TypeAlias, runtime_checkable

from jaxtyping import Array, Float

from fmboost_jax.errors import InputError
from fmboost_jax.models import parameters
from fmboost_jax.models.unet import UNet, UNetConfig


@runtime_checkable
class NetworkConfig(Protocol):
    """Settings of a velocity network; a frozen dataclass whose fields JSON can hold.

    Attributes:
        replicated: regular expression of the parameters that every device holds whole, such as norms. Others are
            sharded over the mesh's `fsdp` axis, see `fmboost_jax.parallel.sharding`.
    """

    replicated: ClassVar[str]

    @property
    def state_channels(self) -> int:
        """Channels of the state and of its velocity."""
        ...

    @property
    def context_channels(self) -> int:
        """Channels of the context; 0 for a network without one."""
        ...

    @property
    def size_multiple(self) -> int:
        """Height and width of the state must be multiples of this."""
        ...

    @property
    def time_inputs(self) -> int:
        """Times that the network reads: 1, or 2 with `second_time`."""
        ...

    @property
    def dtype(self) -> str:
        """dtype of convolutions and matrix products: "float32" or "bfloat16"."""
        ...

    def flops(self, height: int, width: int) -> int:
        """FLOPs of one forward pass of one example whose state has this size; a multiply-add is two."""
        ...


@runtime_checkable
class VelocityNetwork(Protocol):
    """A model, an `nnx.Module`, constructed as `Model(config, rngs=nnx.Rngs(0))`."""

    config: Any

    def velocity(
        self,
        x: Float[Array, "b h w c"],
        t: Float[Array, "b"],
        context: Float[Array, "b h w k"],
        *,
        second_time: Float[Array, "b"] | None = None,
        dropout_key: Array | None = None,
    ) -> Float[Array, "b h w c"]:
        """Return d x / d t, float32.

        Args:
            x: state at time t.
            t: time in [0, 1].
            context: upsampled low-res latent without noise; ignored by a network without context channels.
            second_time: for networks with `time_inputs` 2; its meaning is the objective's.
            dropout_key: draws the dropout; None switches it off.
        """
        ...


@dataclasses.dataclass(frozen=True)
class NetworkKind:
    """An entry of `NETWORKS`.

    Attributes:
        config: class of its settings, a `NetworkConfig`.
        model: class of the network, a `VelocityNetwork`.
    """

    config: type
    model: type


NETWORKS: dict[str, NetworkKind] = {"unet": NetworkKind(UNetConfig, UNet)}
# A model of the table; both a module and a `VelocityNetwork`.
Network: TypeAlias = Any


def kind_of(config: NetworkConfig) -> str:
    """Return the name of the entry of `NETWORKS` that a config belongs to.

    Raises:
        InputError: the config of no entry.
    """
    for name, kind in NETWORKS.items():
        if type(config) is kind.config:
            return name
    known = ", ".join(f"{kind.config.__name__} ({name})" for name, kind in NETWORKS.items())
    raise InputError(f"network config {type(config).__name__} is unknown; expected one of {known}")


def make_network(config: NetworkConfig, key: Array) -> Network:
    """Construct the network of a config with fresh weights drawn from a key."""
    return NETWORKS[kind_of(config)].model(config, rngs=parameters.fresh_keys(key))


def abstract_network(config: NetworkConfig) -> Network:
    """Return the network of a config with shapes instead of arrays."""
    return parameters.abstract(NETWORKS[kind_of(config)].model, config)
