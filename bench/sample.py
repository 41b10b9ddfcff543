"""Seconds an image for the flow and the decoder at 1024², against the PyTorch model and diffusers' decoder.

    python -m bench.sample                              # base UNet, 128×128 latents, 4, 20 and 40 Euler steps
    python -m bench.sample --steps 4 --repeats 1        # the shortest measurement
    python -m bench.sample --latent 32 --batch 2        # as the table in bench/results.md

All read the same random weights of the real sizes from one file; `bench.alternation` orders the repeats.
"""

import argparse
import pathlib
import tempfile

from bench.alternation import alternate, table
from bench.decoders import decoding, write_decoder
from bench.networks import Work, sampling, write_weights
from fmboost_jax.errors import run


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        "bench.sample", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--latent", type=int, default=128, help="height and width of the latents (128: 1024² pixels)")
    parser.add_argument("--batch", type=int, default=1, help="images at once (1)")
    parser.add_argument("--steps", type=int, nargs="+", default=[4, 20, 40], help="Euler steps (4 20 40)")
    parser.add_argument("--width", type=int, default=128, help="the UNet's model_channels (128)")
    parser.add_argument("--repeats", type=int, default=3, help="of each implementation, the first call not counted (3)")
    arguments = parser.parse_args()
    for text in tables(**vars(arguments)):
        print(text, end="\n\n", flush=True)


def tables(*, latent: int, batch: int, steps: list[int], width: int, repeats: int):
    """A table for each number of steps, then the decoder's, as they are measured."""
    with tempfile.TemporaryDirectory() as folder:
        config, weights = {"model_channels": width}, pathlib.Path(folder) / "unet.safetensors"
        write_weights(weights, config)
        for count in steps:
            title = f"flow, {batch} × {latent}×{latent}×4, {count} Euler steps"
            yield table(title, alternate(sampling(Work(weights, config, batch, latent, count)), repeats=repeats))
        decoder = pathlib.Path(folder) / "vae"
        write_decoder(decoder)
        title = f"decoder, {batch} × {8 * latent}² pixels"
        yield table(title, alternate(decoding(decoder, batch, latent), repeats=repeats))


if __name__ == "__main__":
    run(main)
