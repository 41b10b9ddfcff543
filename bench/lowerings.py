"""Blocks of Stable Diffusion 1.5's UNet on TPUs, predicted: torchax's own lowerings and this package's.

    python -m bench.lowerings --kinds v5e v6e     # 10 to 30 minutes on two cores; bench/tpu.md has the results

A residual block and a transformer block of 320 channels at 64×64, one image, bfloat16.
"""

import argparse
from typing import Any
from unittest import mock

import diffusers
import jax
import jax.numpy as jnp
import torch
from diffusers.models.resnet import ResnetBlock2D
from jax.sharding import SingleDeviceSharding

from fmboost_jax.errors import run
from fmboost_jax.generation import torch_models
from fmboost_jax.planning.costs import operations, total_cycles
from fmboost_jax.planning.hlo import parse
from fmboost_jax.planning.topologies import CHIPS, Slice, tpu_slice

MAP = (1, 320, 64, 64)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        "bench.lowerings", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kinds", nargs="+", choices=CHIPS, default=["v5e", "v6e"])
    arguments = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)
    with torch.device("meta"):
        blocks: dict[str, tuple[Any, tuple, dict[str, Any]]] = {
            "residual": (lambda: ResnetBlock2D(in_channels=320, temb_channels=1280), (MAP, (1, 1280)), {}),
            "transformer": (
                lambda: diffusers.Transformer2DModel(8, 40, 320, cross_attention_dim=768),
                (MAP, (1, 77, 768)),
                {"return_dict": False},
            ),
        }
        print("| block | chip | torchax's, ms | ours, ms |\n| --- | --- | --- | --- |")
        for kind in arguments.kinds:
            tpus = tpu_slice(f"{kind}:1x1")
            for name, (make, *inputs) in blocks.items():
                with mock.patch.object(torch_models, "lowerings", dict):
                    theirs = milliseconds(make(), *inputs, tpus)
                print(f"| {name} | {kind} | {theirs:.3f} | {milliseconds(make(), *inputs, tpus):.3f} |", flush=True)


def milliseconds(module: torch.nn.Module, shapes: tuple, options: dict[str, Any], tpus: Slice) -> float:
    """Predicted time of one call."""
    function, weights = torch_models.extract(module, "bfloat16")
    inputs = [jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in shapes]
    chip = SingleDeviceSharding(tpus.devices[0])
    placed = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=chip), (weights, inputs))
    program = jax.jit(lambda weights, inputs: function(weights, *inputs, **options)).lower(*placed).compile()
    return total_cycles(operations(parse(program.as_text() or ""))) / tpus.chip.clock * 1e3


if __name__ == "__main__":
    run(main)
