"""Accuracy of bfloat16: relative error ‖bfloat16 − float32‖ / ‖float32‖ of one call.

    python -m bench.precision

Networks: the base UNet (305,806,340 parameters) on 32×32×4 latents and SD 1.x's autoencoder decoding one 256² image,
random weights, normal inputs. With `--tiny FOLDER PHOTO` also a TAESD-family decode of a photograph's latent through
real weights. Every layer is drawn at random, the zero-initialised ones too; otherwise the UNet's output would be zero.
"""

import argparse
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from PIL import Image

from fmboost_jax.errors import run
from fmboost_jax.interop.autoencoders import load_first_stage
from fmboost_jax.models.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig
from fmboost_jax.models.parameters import abstract, count, merge, split
from fmboost_jax.models.unet import UNet, UNetConfig


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        "bench.precision", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tiny", nargs=2, metavar=("FOLDER", "PHOTO"), help="real weights and an image file")
    arguments = parser.parse_args()
    key = jax.random.key(1)
    state, context = jax.random.normal(key, (2, 1, 32, 32, 4))
    compare("UNet, one call", UNet, UNetConfig(), lambda unet: unet(state, jnp.full(1, 0.5), context))
    latent = jax.random.normal(key, (1, 32, 32, 4))
    compare("AutoencoderKL, one decode", AutoencoderKL, AutoencoderKLConfig(), lambda model: model.decode(latent))
    if arguments.tiny:
        _compare_tiny(*arguments.tiny)


def compare(name: str, model: type[nnx.Module], config, call) -> None:
    """Print the error of `call(model)` in bfloat16."""
    parameters = _drawn(split(abstract(model, config))[1])
    outputs = []
    for dtype in ("float32", "bfloat16"):
        cast = dataclasses.replace(config, dtype=dtype)
        graph = split(abstract(model, cast))[0]
        outputs.append(jax.jit(lambda parameters, graph=graph: call(merge(graph, parameters)))(parameters))
    _report(f"{name}, {count(parameters):,} parameters", *outputs)


def _drawn(shapes: dict) -> dict[str, jax.Array]:
    """Kernels at 1/√fan-in, scales near 1, biases near 0; none zero."""
    generator = np.random.default_rng(0)
    drawn = {}
    for name, shape in shapes.items():
        noise = generator.standard_normal(shape.shape, np.float32)
        if name.endswith("kernel"):
            noise /= np.sqrt(shape.size / shape.shape[-1])
        else:
            noise = 0.1 * noise + name.endswith("scale")
        drawn[name] = jnp.asarray(noise)
    return drawn


def _compare_tiny(folder: str, photo: str) -> None:
    stages = [load_first_stage("tiny", folder, dtype) for dtype in ("float32", "bfloat16")]
    pixels = np.asarray(Image.open(photo).convert("RGB"), np.float32) / 127.5 - 1
    height, width = (side // stages[0].downsampling * stages[0].downsampling for side in pixels.shape[:2])
    latent = stages[0].encode(jnp.asarray(pixels[None, :height, :width]))
    _report(f"{folder}, one decode of {photo}", *(stage.decode(latent) for stage in stages))


def _report(name: str, exact: jax.Array, rough: jax.Array) -> None:
    error = float(jnp.linalg.norm(rough - exact) / jnp.linalg.norm(exact))
    print(f"{name}: relative error {error:.2e} on {jax.devices()[0].device_kind}")


if __name__ == "__main__":
    run(main)
