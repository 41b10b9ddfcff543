"""Time and memory of `fmboost_jax.sample` by a photograph's size.

    python -m bench.photographs PHOTOGRAPH --megapixels 3 12 24 100

A photograph is resized to each size and boosted ×2 by the packaged booster, each size in a separate process. CPU
seconds are user and system time of the process, with import, compilation and writing. Other work on the machine changes
them less than wall time. Memory is the peak of the process; the last column subtracts both images at 8 bits, 15 bytes
for each pixel of the photograph. The exponents are fitted as in `bench.growth`, without the smallest size, half of
whose time is compilation.
"""

import argparse
import os
import pathlib
import subprocess
import sys
import tempfile
import time

from PIL import Image

from bench.growth import exponent

FACTOR = 2


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser("bench.photographs", description=__doc__.splitlines()[0])
    parser.add_argument("photograph")
    parser.add_argument("--megapixels", type=float, nargs="+", default=[3, 12, 24, 100], help="(3 12 24 100)")
    parser.add_argument("--booster", default="photo-x2", help="a booster ×2 (photo-x2)")
    arguments = parser.parse_args()
    Image.MAX_IMAGE_PIXELS = None
    print("| megapixels | size | CPU seconds | wall seconds | peak, GiB | without the pictures, GiB |")
    print("| --- " * 6 + "|", flush=True)
    rows = []
    for megapixels in arguments.megapixels:
        with tempfile.TemporaryDirectory() as folder:
            width, height = write_photograph(arguments.photograph, megapixels, pathlib.Path(folder) / "photograph.png")
            cpu, wall, peak = boost(pathlib.Path(folder), arguments.booster)
        pictures = width * height * 3 * (1 + FACTOR**2) / 2**30
        rows.append((width * height, cpu, peak))
        print(
            f"| {width * height / 1e6:.0f} | {width}×{height} | {cpu:.0f} | {wall:.0f} | {peak:.2f} | "
            f"{peak - pictures:.2f} |",
            flush=True,
        )
    if len(rows) > 2:
        pixels, cpu, peak = zip(*rows[1:], strict=True)
        print(f"| exponent | | {exponent(pixels, cpu):.2f} | | {exponent(pixels, peak):.2f} | |")


def write_photograph(source: str, megapixels: float, path: pathlib.Path) -> tuple[int, int]:
    """Resize a photograph to about so many megapixels, and write it; return width and height."""
    with Image.open(source) as image:
        scale = (megapixels * 1e6 / (image.width * image.height)) ** 0.5
        size = round(image.width * scale), round(image.height * scale)
        image.convert("RGB").resize(size, Image.Resampling.BICUBIC).save(path, compress_level=1)
    return size


def boost(folder: pathlib.Path, booster: str) -> tuple[float, float, float]:
    """Boost the photograph in a folder; return CPU seconds, wall seconds and peak GiB of the process."""
    command = [sys.executable, "-m", "fmboost_jax.sample", "--booster", booster, "--input", str(folder)]
    started = time.perf_counter()
    process = subprocess.Popen([*command, "--out", str(folder / "boosted")], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - started
    if status:
        raise SystemExit(f"{' '.join(command)} failed")
    return usage.ru_utime + usage.ru_stime, wall, usage.ru_maxrss / 2**20


if __name__ == "__main__":
    main()
