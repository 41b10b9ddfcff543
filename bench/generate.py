"""A base model on CPUs, ours and diffusers': one call of Stable Diffusion 1.5's UNet, and small pipelines end to end.

    python -m bench.generate              # about 8 GiB of memory; the weights are random
    python -m bench.generate --repeats 5

CPU seconds of all threads, which other work on the machine changes little. All in float32 from the same weights and
inputs. Errors are relative to the largest value of diffusers'.
"""

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import torch

from fmboost_jax.errors import run
from fmboost_jax.generation.generator import Generator
from fmboost_jax.generation.torch_models import extract
from tests.generation.small_pipelines import small_flux2, small_pipeline

PARAMETERS = 859_520_964


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        "bench.generate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=3, help="calls of which the median counts (default: 3)")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    print("| one call, 1 × 64×64×4 | CPU seconds | peer ÷ ours | first call | largest error |")
    print("| --- | --- | --- | --- | --- |")
    unet_call(arguments.repeats)
    print("\n| prompt → image, tiny | ours, CPU s | diffusers, CPU s |\n| --- | --- | --- |")
    for kind in ("sd", "lcm", "sdxl", "flux2"):
        small(kind, arguments.repeats)


def unet_call(repeats: int) -> None:
    """Print the table's rows of the UNet of full width."""
    draw = np.random.default_rng(0)
    state, texts = (draw.standard_normal(shape).astype(np.float32) for shape in ((1, 4, 64, 64), (1, 77, 768)))
    inputs = torch.tensor(state), torch.tensor(500.0), torch.tensor(texts)

    def call(model: Any) -> np.ndarray:
        with torch.inference_mode():
            return model(*inputs, return_dict=False)[0].numpy()

    unet = random_unet()
    eager = timed(lambda: call(unet), repeats)
    expected = call(unet)
    # torch.compile comes first: it fails in a process that has imported torchax.
    compiled = torch.compile(unet)
    compiled_times, compiled_result = timed(lambda: call(compiled), repeats), call(compiled)
    del compiled
    torch.compiler.reset()
    function, weights = extract(unet)

    @jax.jit
    def jitted(weights, state, texts):
        return function(weights, state, jnp.float32(500), texts, return_dict=False)[0]

    def ours() -> np.ndarray:
        return np.asarray(jitted(weights, state, texts))

    first, median = timed(ours, repeats)

    def row(name: str, times: tuple[float, float], found: np.ndarray) -> None:
        error = np.abs(found - expected).max() / np.abs(expected).max()
        print(f"| {name} | {times[1]:.2f} | {times[1] / median:.2f}× | {times[0]:.1f} | {error:.1e} |", flush=True)

    row("fmboost_jax", (first, median), ours())
    row("diffusers, eager", eager, expected)
    row("diffusers, torch.compile", compiled_times, compiled_result)


def random_unet() -> Any:
    """Stable Diffusion 1.5's UNet, with the same random weights each time."""
    torch.manual_seed(0)
    unet: Any = diffusers.UNet2DConditionModel(sample_size=64, cross_attention_dim=768).eval()
    assert sum(parameter.numel() for parameter in unet.parameters()) == PARAMETERS
    return unet


def small(kind: str, repeats: int) -> None:
    """Print a small pipeline's row: its default steps, its own decoder."""
    make = small_flux2 if kind == "flux2" else lambda: small_pipeline(kind)
    pipe = make()
    _, theirs = timed(lambda: pipe(prompt="a cat", output_type="np").images, repeats)
    generator = Generator(pipe)
    _, ours = timed(lambda: generator("a cat", seed=0), repeats)
    name = f"{type(pipe).__name__}, {generator.pipeline.default_steps} steps"
    print(f"| {name} | {ours:.3f} | {theirs:.3f} |", flush=True)


def timed(call: Callable[[], Any], repeats: int) -> tuple[float, float]:
    """CPU seconds of the first call, and the median of those after it, of all threads."""
    seconds = []
    for _ in range(repeats + 1):
        start = time.process_time()
        call()
        seconds.append(time.process_time() - start)
    return seconds[0], statistics.median(seconds[1:])


if __name__ == "__main__":
    run(main)
