"""Cost of a decode, and the error of tiles.

    python -m bench.decode memory --size 1024 2048      # AutoencoderKL at SD 1.x widths: seconds and peak memory
    python -m bench.decode memory --size 1024 --dtype bfloat16
    python -m bench.decode seams tiny FOLDER PHOTO      # tiled against exact, on a photograph through real weights

`memory` needs no weights: random ones take as long. Each size runs in a process of its own, whose peak resident memory
(Python, JAX, the weights and the compiler included) is read from the operating system. `seams` encodes the photograph,
decodes it whole and in tiles, and compares the two: overall, and within 8 pixels of the tiles' edges.
"""

import argparse
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from PIL import Image

from bench.memory import peak_gib
from fmboost_jax.errors import run
from fmboost_jax.interop.autoencoders import load_first_stage
from fmboost_jax.models.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig
from fmboost_jax.models.parameters import merge, split
from fmboost_jax.models.tiling import decode_tiled

# What one decode may take on CPU in float32, in GiB.
LIMITS = {1024: 6, 2048: 16}
NEAR_A_SEAM = 8


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        "bench.decode", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    memory = commands.add_parser("memory", help="seconds and peak memory of AutoencoderKL.decode")
    memory.add_argument("--size", type=int, nargs="+", default=[1024, 2048], help="image sides in pixels (1024 2048)")
    memory.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    memory.set_defaults(function=measure_memory)
    seams = commands.add_parser("seams", help="tiled decoding against the exact one")
    seams.add_argument("kind", choices=("kl", "tiny"))
    seams.add_argument("path", help="folder, file or hub id of the weights")
    seams.add_argument("photo", help="image file")
    seams.add_argument("--tile", type=int, default=32, help="latent positions of a tile (32)")
    seams.set_defaults(function=measure_seams)
    arguments = parser.parse_args()
    arguments.function(arguments)


def measure_memory(arguments: argparse.Namespace) -> None:
    """One process a size; with a single size, this one."""
    if len(arguments.size) > 1:
        for size in arguments.size:
            words = ["memory", "--size", str(size), "--dtype", arguments.dtype]
            subprocess.run([sys.executable, "-m", "bench.decode", *words], check=True)
        return
    (size,) = arguments.size
    graph, parameters = split(AutoencoderKL(AutoencoderKLConfig(dtype=arguments.dtype), rngs=nnx.Rngs(0)))
    latent = jnp.asarray(np.random.default_rng(0).normal(size=(1, size // 8, size // 8, 4)), jnp.float32)
    before = peak_gib()
    decode = jax.jit(lambda parameters, latent: merge(graph, parameters).decode(latent))
    decode = decode.lower(parameters, latent).compile()
    planned = decode.memory_analysis().temp_size_in_bytes / 2**30
    started = time.perf_counter()
    image = jax.block_until_ready(decode(parameters, latent))
    seconds = time.perf_counter() - started
    finite = bool(jnp.isfinite(image).all())
    limit = f", limit {LIMITS[size]}" if size in LIMITS else ""
    print(
        f"{size}² {arguments.dtype} on {jax.devices()[0].device_kind}: {seconds:.1f} s, "
        f"peak {peak_gib():.2f} GiB{limit} ({before:.2f} before the decode, XLA planned {planned:.2f}), "
        f"{'finite' if finite else 'NOT FINITE'}"
    )


def measure_seams(arguments: argparse.Namespace) -> None:
    """PSNR of tiled against exact decoding for several overlaps."""
    stage = load_first_stage(arguments.kind, arguments.path)
    photo = np.asarray(Image.open(arguments.photo).convert("RGB"), np.float32) / 127.5 - 1
    height, width = (side // stage.downsampling * stage.downsampling for side in photo.shape[:2])
    latent = stage.encode(jnp.asarray(photo[None, :height, :width]))
    exact = np.asarray(stage.decode(latent))
    tile = arguments.tile
    print(f"{width}×{height} pixels, tiles of {tile} latent positions, against the exact decode:")
    for overlap in (0, tile // 8, tile // 4, tile // 2):
        tiled = decode_tiled(stage.decode, latent, tile=tile, overlap=overlap)
        error = np.abs(tiled - exact)[0].max(axis=-1) / 2
        near = _near_seams(error.shape, tile * stage.downsampling, overlap * stage.downsampling)
        print(
            f"  overlap {overlap:2d}: {_psnr(error):.1f} dB, near the tiles' edges {_psnr(error[near]):.1f} dB, "
            f"worst pixel {error.max() * 255:.0f} of 255"
        )


def _near_seams(shape: tuple[int, int], tile: int, overlap: int) -> np.ndarray:
    near = [np.zeros(side, bool) for side in shape]
    for marks in near:
        side = len(marks)
        for start in range(tile - overlap, side - overlap, tile - overlap):
            for edge in (min(start, side - tile), min(start, side - tile) + overlap):
                marks[max(edge - NEAR_A_SEAM, 0) : edge + NEAR_A_SEAM] = True
    return near[0][:, None] | near[1][None, :]


def _psnr(error: np.ndarray) -> float:
    return float(-10 * np.log10(np.mean(error**2)))


if __name__ == "__main__":
    run(main)
