"""The Inception network of the FID, TensorFlow's graph of 2015-12-05.

Source: Szegedy et al. 2015, arXiv 1512.00567, for the blocks; Heusel et al. 2017, arXiv 1706.08500, for the FID. It
differs from later Inception v3 networks: average pooling excludes the padding, the last block has maximum pooling, and
images are resized as in TensorFlow 1 (no half-pixel centres, no antialiasing).
`pt_inception-2015-12-05-6726825d.pth` has the weights under torchvision's names.
"""

import hashlib
import os
import pathlib
import warnings
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, UInt8

from fmboost_jax.errors import InputError
from fmboost_jax.files import user_cache
from fmboost_jax.interop.names import CONV, Row, Table, build
from fmboost_jax.interop.weights import read_state_dict
from fmboost_jax.metrics.batch_norm import fold_batch_norms

SIZE = 299
FEATURES = 2048
FILE = "pt_inception-2015-12-05-6726825d.pth"
# The second is the name of the same file in torch-fidelity and torchmetrics.
FILES = (FILE, "weights-inception-2015-12-05-6726825d.pth")
SHA256_START = "6726825d"


class Layer(NamedTuple):
    """A convolution with batch norm and ReLU. Layers with stride 2 have no padding."""

    name: str
    outputs: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1


class Block(NamedTuple):
    """Parallel branches whose outputs are concatenated on channels.

    Attributes:
        branches: sequences of layers. A tuple of layers at the end is a fork; its outputs are concatenated.
        pool: pooling of the last branch. "average" and "max" have stride 1 and are followed by a 1×1 convolution;
            "halve" is maximum pooling with stride 2, without a convolution.
        pool_outputs: channels of that convolution.
    """

    branches: tuple[tuple[Layer | tuple[Layer, Layer], ...], ...]
    pool: str
    pool_outputs: int = 0


STEM = (
    Layer("Conv2d_1a_3x3", 32, (3, 3), 2),
    Layer("Conv2d_2a_3x3", 32, (3, 3)),
    Layer("Conv2d_2b_3x3", 64, (3, 3)),
    Layer("Conv2d_3b_1x1", 80),
    Layer("Conv2d_4a_3x3", 192, (3, 3)),
)
_PADDED_IN_STEM = "Conv2d_2b_3x3"
_POOL_AFTER = ("Conv2d_2b_3x3", "Conv2d_4a_3x3")


def _chain(name: str, *layers: tuple[int, int, int] | tuple[int, int, int, int]) -> tuple[Layer, ...]:
    """Return layers (outputs, height, width[, stride]): a single one is named `name`, several `name_1`, `name_2`, …."""
    names = [name] if len(layers) == 1 else [f"{name}_{number}" for number in range(1, len(layers) + 1)]
    return tuple(
        Layer(label, outputs, (height, width), *stride)
        for label, (outputs, height, width, *stride) in zip(names, layers, strict=True)
    )


def _fork(name: str) -> tuple[Layer, Layer]:
    return Layer(f"{name}a", 384, (1, 3)), Layer(f"{name}b", 384, (3, 1))


def _block_35(pool_outputs: int) -> Block:
    """Return a block at 35×35 positions (figure 5)."""
    branches = (
        _chain("branch1x1", (64, 1, 1)),
        _chain("branch5x5", (48, 1, 1), (64, 5, 5)),
        _chain("branch3x3dbl", (64, 1, 1), (96, 3, 3), (96, 3, 3)),
    )
    return Block(branches, "average", pool_outputs)


def _block_17(width: int) -> Block:
    """Return a block at 17×17 positions (figure 6), with 7×7 convolutions factorised into 1×7 and 7×1."""
    branches = (
        _chain("branch1x1", (192, 1, 1)),
        _chain("branch7x7", (width, 1, 1), (width, 1, 7), (192, 7, 1)),
        _chain("branch7x7dbl", (width, 1, 1), (width, 7, 1), (width, 1, 7), (width, 7, 1), (192, 1, 7)),
    )
    return Block(branches, "average", 192)


def _block_8(pool: str) -> Block:
    """Return a block at 8×8 positions (figure 7), with forks into 1×3 and 3×1."""
    branches = (
        _chain("branch1x1", (320, 1, 1)),
        (Layer("branch3x3_1", 384), _fork("branch3x3_2")),
        (*_chain("branch3x3dbl", (448, 1, 1), (384, 3, 3)), _fork("branch3x3dbl_3")),
    )
    return Block(branches, pool, 192)


BLOCKS = {
    "Mixed_5b": _block_35(32),
    "Mixed_5c": _block_35(64),
    "Mixed_5d": _block_35(64),
    "Mixed_6a": Block(
        (
            _chain("branch3x3", (384, 3, 3, 2)),
            _chain("branch3x3dbl", (64, 1, 1), (96, 3, 3), (96, 3, 3, 2)),
        ),
        "halve",
    ),
    "Mixed_6b": _block_17(128),
    "Mixed_6c": _block_17(160),
    "Mixed_6d": _block_17(160),
    "Mixed_6e": _block_17(192),
    "Mixed_7a": Block(
        (
            _chain("branch3x3", (192, 1, 1), (320, 3, 3, 2)),
            _chain("branch7x7x3", (192, 1, 1), (192, 1, 7), (192, 7, 1), (192, 3, 3, 2)),
        ),
        "halve",
    ),
    "Mixed_7b": _block_8("average"),
    "Mixed_7c": _block_8("max"),
}


def _conv(inputs: int, layer: Layer, padding: str, rngs: nnx.Rngs) -> nnx.Conv:
    return nnx.Conv(inputs, layer.outputs, layer.kernel, layer.stride, padding=padding, rngs=rngs)


class MixedBlock(nnx.Module):
    """A block. Its convolutions have the names of the weights file."""

    def __init__(self, inputs: int, block: Block, rngs: nnx.Rngs):
        self.block = block
        convs, self.outputs = {}, 0

        def add(width: int, layer: Layer) -> int:
            convs[layer.name] = _conv(width, layer, "SAME" if layer.stride == 1 else "VALID", rngs)
            return layer.outputs

        for branch in block.branches:
            width = inputs
            for layer in branch:
                width = add(width, layer) if isinstance(layer, Layer) else sum(add(width, fork) for fork in layer)
            self.outputs += width
        if block.pool_outputs:
            add(inputs, Layer("branch_pool", block.pool_outputs))
        self.outputs += block.pool_outputs or inputs
        self.convs = nnx.Dict(convs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b H W d"]:
        results = []
        for branch in self.block.branches:
            y = x
            for layer in branch:
                fork = (layer,) if isinstance(layer, Layer) else layer
                y = jnp.concatenate([jax.nn.relu(self.convs[one.name](y)) for one in fork], axis=-1)
            results.append(y)
        if self.block.pool == "halve":
            results.append(nnx.max_pool(x, (3, 3), strides=(2, 2)))
        else:
            average = self.block.pool == "average"
            kept = {"window_shape": (3, 3), "strides": (1, 1), "padding": "SAME"}
            pooled = nnx.avg_pool(x, **kept, count_include_pad=False) if average else nnx.max_pool(x, **kept)
            results.append(jax.nn.relu(self.convs["branch_pool"](pooled)))
        return jnp.concatenate(results, axis=-1)


class Inception(nnx.Module):
    """The network up to average pooling, with folded batch norms."""

    def __init__(self, config: None = None, *, rngs: nnx.Rngs):
        stem, width = {}, 3
        for layer in STEM:
            padding = "SAME" if layer.name == _PADDED_IN_STEM else "VALID"
            stem[layer.name] = _conv(width, layer, padding, rngs)
            width = layer.outputs
        blocks = {}
        for name, block in BLOCKS.items():
            blocks[name] = MixedBlock(width, block, rngs)
            width = blocks[name].outputs
        self.stem, self.blocks = nnx.Dict(stem), nnx.Dict(blocks)

    def __call__(self, images: UInt8[Array, "b h w 3"]) -> Float[Array, "b 2048"]:
        """Return features: the last block's mean over positions."""
        x = (resize_like_tensorflow_1(images.astype(jnp.float32), SIZE) - 128) / 128
        for layer in STEM:
            x = jax.nn.relu(self.stem[layer.name](x))
            if layer.name in _POOL_AFTER:
                x = nnx.max_pool(x, (3, 3), strides=(2, 2))
        for name in BLOCKS:
            x = self.blocks[name](x)
        return jnp.mean(x, axis=(1, 2))


def resize_like_tensorflow_1(images: Float[Array, "b h w c"], size: int) -> Float[Array, "b size size c"]:
    """Resize bilinearly with sample i at i · (old / new), like `tf.image.resize_bilinear` of TensorFlow 1."""
    for axis in (1, 2):
        old = images.shape[axis]
        at = np.arange(size, dtype=np.float32) * np.float32(old / size)
        below = np.minimum(np.floor(at).astype(np.int32), old - 1)
        above = np.minimum(below + 1, old - 1)
        weight = jnp.expand_dims(at - below, (0, 2, 3) if axis == 1 else (0, 1, 3))
        low, high = jnp.take(images, below, axis=axis), jnp.take(images, above, axis=axis)
        images = low + (high - low) * weight
    return images


def _names() -> Table:
    rows = [Row(f"stem.{layer.name}", f"{layer.name}.conv", CONV) for layer in STEM]
    for name, block in BLOCKS.items():
        layers = [layer for branch in block.branches for layer in branch]
        flat = [one for layer in layers for one in ((layer,) if isinstance(layer, Layer) else layer)]
        known = [layer.name for layer in flat] + ["branch_pool"] * bool(block.pool_outputs)
        rows += [Row(f"blocks.{name}.convs.{conv}", f"{name}.{conv}.conv", CONV) for conv in known]
    return Table("torchvision", tuple(rows))


NAMES = _names()


def load_inception(path: str | None = None) -> Inception:
    """Load the network.

    Args:
        path: file of the weights. Default: one of `FILES` in PyTorch's download folder.

    Raises:
        InputError: the file is missing, cannot be read or does not fit.

    Warns:
        UserWarning: weights other than the published ones; distances in their features are not the FID.
    """
    path = path or _downloaded_path()
    tensors = fold_batch_norms(read_state_dict(path), lambda conv: conv.removesuffix("conv") + "bn", epsilon=1e-3)
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if not digest.startswith(SHA256_START):
        warnings.warn(f"{path} is not the published {FILE}; distances in its features are not the FID", stacklevel=2)
    return build(Inception, None, NAMES, tensors)


def _downloaded_path() -> str:
    folder = pathlib.Path(os.environ.get("TORCH_HOME") or user_cache("torch")).expanduser() / "hub" / "checkpoints"
    for name in FILES:
        if (folder / name).is_file():
            return str(folder / name)
    raise InputError(
        f"the FID's Inception weights are missing: fetch {FILE} (91 MiB; release fid_weights of "
        f"github.com/mseitzer/pytorch-fid) into {folder}, or pass the path of the file as weights; the features "
        "efficientnet-lite0 give another distance, with weights from pip"
    )
