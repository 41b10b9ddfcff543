"""The paper's headline: LCM-SD1.5 and the flow to 1024², seconds an image from prompt to pixels; published 0.347.

    python -m bench.headline --base SimianLuo/LCM_Dreamshaper_v7 --booster BUNDLE
    python -m bench.headline --random sd15               # random weights of the real sizes: the same time
    python -m bench.headline --random tiny               # tiny networks, to test that it runs on any machine

Text encoder, base model, flow and decoder in JAX, see docs/generate.md. The first call compiles and does not count; the
result is the median of the repeats. The base model's size follows from the booster's factor: 512² for ×2, 256² for ×4.
The paper does not report the numbers of steps; the defaults are ours.
"""

import argparse
import pathlib
import statistics
import sys
import tempfile
import time
from typing import NamedTuple

import jax

from bench.stand_ins import SIZES, random_booster, random_pipeline
from fmboost_jax.boosting.booster import Booster
from fmboost_jax.errors import InputError, run
from fmboost_jax.generation.generator import Generator

PUBLISHED = 0.347  # seconds an image, arXiv 2312.07360
PROMPT = "a lighthouse on a cliff at night, long exposure"


class Times(NamedTuple):
    """Seconds of the first call, and an image of the later ones (median)."""

    first: float
    image: float


def main(argv: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        "bench.headline", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", metavar="FOLDER_OR_ID", help="diffusers pipeline of a latent consistency model")
    parser.add_argument("--booster", metavar="DIR", help="bundle or run of a booster of its latents")
    parser.add_argument("--random", choices=tuple(SIZES), help="random weights of these sizes instead of both")
    parser.add_argument("--steps", type=int, default=4, help="of the base model (4)")
    parser.add_argument("--boost-steps", type=int, default=4, help="of the flow (4)")
    parser.add_argument("--batch", type=int, default=1, help="images at once (1)")
    parser.add_argument("--repeats", type=int, default=5, help="after the first call (5)")
    dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default=dtype, help=f"({dtype} here)")
    arguments = parser.parse_args(sys.argv[1:] if argv is None else argv)
    with tempfile.TemporaryDirectory() as folder:
        if arguments.random:
            sizes = SIZES[arguments.random]
            pipe = random_pipeline(sizes)
            booster = random_booster(pipe, sizes, pathlib.Path(folder), arguments.dtype)
            generator = Generator(pipe, [booster], dtype=arguments.dtype)
            side = sizes.latent * generator.pipeline.downsampling
        elif arguments.base and arguments.booster:
            booster = Booster.load(arguments.booster, dtype=arguments.dtype)
            generator = Generator.load(arguments.base, [booster], dtype=arguments.dtype)
            side = 1024 // booster.factor
        else:
            raise InputError("the headline needs --base and --booster, or --random sd15 for random weights")
        options = {"steps": arguments.steps, "boost_steps": arguments.boost_steps}
        times = measure(generator, side=side, batch=arguments.batch, repeats=arguments.repeats, **options)
    print(_table(times, arguments, side, side * booster.factor))


def measure(generator: Generator, *, side: int, batch: int, repeats: int, steps: int, boost_steps: int) -> Times:
    """Time prompts to pixels.

    Args:
        generator: base model and booster.
        side: of the base model's images in pixels.
        batch: images at once.
        repeats: calls after the first one.
        steps, boost_steps: of the base model and of the flow.
    """

    def seconds(seed: int) -> float:
        start = time.perf_counter()
        generator([PROMPT] * batch, steps=steps, boost_steps=boost_steps, height=side, width=side, seed=seed * batch)
        return time.perf_counter() - start

    first = seconds(0)
    return Times(first, statistics.median(seconds(seed) for seed in range(1, repeats + 1)) / batch)


def _table(times: Times, arguments: argparse.Namespace, low: int, high: int) -> str:
    device = f"{jax.device_count()} × {jax.devices()[0].device_kind}"
    words = f"{arguments.steps} + {arguments.boost_steps}"
    lines = [
        f"### LCM, {low}² → {high}², prompt to pixels",
        "",
        "| device | dtype | batch | steps | s an image | first call, s | published, 1024² |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        f"| {device} | {arguments.dtype} | {arguments.batch} | {words} | {times.image:.3f} | {times.first:.1f} | "
        f"{PUBLISHED} |",
    ]
    if arguments.random == "tiny":
        lines += ["", "Stand-ins, small networks with random weights: not comparable with the published number."]
    elif arguments.random:
        lines += ["", "Random weights of the real sizes: the time is comparable, the images are noise."]
    return "\n".join(lines)


if __name__ == "__main__":
    run(main)
