"""Every benchmark of networks that this machine can run, each against its peers, as one page of tables.

    python -m bench > bench/results.md                  # the base UNet at 32×32 latents and SD's decoder at 256²
    python -m bench --width 64 --repeats 3              # a narrower UNet, sooner

Seconds are medians of repeats that go round among the contestants, each in a process of its own; "first call" is
building and compiling, "peak" the process's largest resident memory. Data and decoders' memory: `python -m bench.data`,
`python -m bench.decode`; pods: `bench/tpu.md`.
"""

import argparse
import datetime
import importlib.metadata
import os
import pathlib
import platform
import sys
import tempfile

from bench.contest import contest, table
from bench.decoders import decoding, write_decoder
from bench.networks import Work, sampling, training, write_weights
from fmboost_jax.errors import run


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser("bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=128, help="the UNet's model_channels (128)")
    parser.add_argument("--latent", type=int, default=32, help="height and width of the latents (32)")
    parser.add_argument("--batch", type=int, default=2, help="latents at once (2)")
    parser.add_argument("--steps", type=int, default=4, help="Euler steps of sampling (4)")
    parser.add_argument("--repeats", type=int, default=5, help="of each contestant, the first call not counted (5)")
    arguments = parser.parse_args()
    print(heading(), end="\n\n", flush=True)
    size = f"{arguments.batch} × {arguments.latent}×{arguments.latent}×4"
    with tempfile.TemporaryDirectory() as folder:
        config, weights = {"model_channels": arguments.width}, pathlib.Path(folder) / "unet.safetensors"
        print("UNet: random weights", file=sys.stderr)
        write_weights(weights, config)
        work = Work(weights, config, arguments.batch, arguments.latent, arguments.steps)
        decoder = pathlib.Path(folder) / "vae"
        write_decoder(decoder)
        for title, contestants in (
            (f"Sampling: {arguments.steps} Euler steps of {size}", sampling(work)),
            (f"Training: one step of {size}", training(work)),
            (
                f"Decoding: {arguments.batch} × {8 * arguments.latent}²",
                decoding(decoder, arguments.batch, arguments.latent),
            ),
        ):
            print(title, file=sys.stderr)
            print(table(title, contest(contestants, repeats=arguments.repeats)), end="\n\n", flush=True)


def heading() -> str:
    """Machine, versions, date and command."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("jax", "flax", "torch", "diffusers"))
    words = " ".join(["python -m bench", *sys.argv[1:]])
    return (
        f"# What the networks take\n\n`{words}`, {datetime.date.today()}: {len(os.sched_getaffinity(0))} cores of "
        f"{_processor()}, {platform.system()}; {versions}."
    )


def _processor() -> str:
    """As Linux names it."""
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    run(main)
