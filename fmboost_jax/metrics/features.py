"""Feature networks for Fréchet distances, by name."""

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
    """A kind of feature network.

    Attributes:
        metric: name of the Fréchet distance of its features.
        dimensions: length of a feature vector.
        load: function from the path of the weights, or None for their default location, to the network.
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
    """A frozen network from images to feature vectors, in float32 at the highest precision of the device.

    Args:
        name: key of the network in `KINDS`.
        model: the network.

    Attributes:
        metric: name of the Fréchet distance of its features.
        dimensions: length of a feature vector.
        parameters: weights.
        function: jitted function of (parameters, images) that returns features.
    """

    def __init__(self, name: str, model: nnx.Module):
        self.name = name
        self.metric, self.dimensions, _ = KINDS[name]
        graph, self.parameters = split(model)
        self.function = functools.partial(_features, graph)

    def __call__(self, images: UInt8[Array | np.ndarray, "b h w 3"]) -> Float[Array, "b d"]:
        """Return the features of images of the same size."""
        return self.function(self.parameters, images)


def load_features(name: str, path: str | None = None) -> FeatureNetwork:
    """Load a feature network.

    Args:
        name: "inception" or "efficientnet-lite0".
        path: file of its weights. Default: see `load_inception` and `load_efficientnet_lite0`.

    Raises:
        InputError: an unknown name, or weights that are missing or do not fit.
    """
    return FeatureNetwork(name, choose("feature network", name, KINDS).load(path))


@functools.partial(jax.jit, static_argnums=0)
def _features(graph: nnx.GraphDef, parameters: Parameters, images: Array) -> Array:
    with jax.default_matmul_precision("highest"):
        return merge(graph, parameters)(images)
