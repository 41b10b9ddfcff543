"""Feature networks by name: uint8 images in, feature vectors for a Fréchet distance out."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, UInt8

from fmboost_jax.metrics import efficientnet, inception
from fmboost_jax.models.parameters import Parameters, merge, split
from fmboost_jax.registry import choose


class Kind(NamedTuple):
    """What there is to know of a feature network before it is loaded.

    Attributes:
        metric: the name of the distance in its features.
        dimensions: length of a feature vector.
        load: from a path, or None for where it usually is, to the network.
    """

    metric: str
    dimensions: int
    load: Callable[[str | None], nnx.Module]


KINDS = {
    "inception": Kind("fid", inception.FEATURES, inception.load_inception),
    "efficientnet-lite0": Kind(
        "frechet-efficientnet-lite0", efficientnet.FEATURES, efficientnet.load_efficientnet_lite0
    ),
}


class FeatureNetwork:
    """A frozen network that turns images into feature vectors, float32 at the highest precision of the device.

    Args:
        name: of the network, one of `KINDS`.
        model: the network.

    Attributes:
        metric: the name of the Fréchet distance in its features.
        dimensions: length of a feature vector.
        parameters: its weights.
        function: (parameters, images) → features, jitted.
    """

    def __init__(self, name: str, model: nnx.Module):
        self.name = name
        self.metric, self.dimensions, _ = KINDS[name]
        graph, self.parameters = split(model)
        self.function = functools.partial(_features, graph)

    def __call__(self, images: UInt8[Array | np.ndarray, "b h w 3"]) -> Float[Array, "b d"]:
        """Features of images of one size; one compiled program a shape."""
        return self.function(self.parameters, images)


def load_features(name: str, path: str | None = None) -> FeatureNetwork:
    """A feature network by name.

    Args:
        name: "inception" or "efficientnet-lite0".
        path: its weights' file; where they usually are unless told.

    Raises:
        InputError: an unknown name, or weights that are not here or do not fit.
    """
    return FeatureNetwork(name, choose("feature network", name, KINDS).load(path))


@functools.partial(jax.jit, static_argnums=0)
def _features(graph: nnx.GraphDef, parameters: Parameters, images: Array) -> Array:
    with jax.default_matmul_precision("highest"):
        return merge(graph, parameters)(images)
