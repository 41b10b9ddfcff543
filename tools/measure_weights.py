"""The tables of docs/weights.md: a booster on held-out photographs beside what is to be beaten.

    python tools/measure_weights.py demo-x2 SPLIT/held_out
    python tools/measure_weights.py demo-x2 SPLIT/held_out --boosted-alone --steps 4 --controls
    python tools/measure_weights.py RUN SPLIT/held_out --steps 4 --limit 12
    python tools/measure_weights.py demo-x2 SPLIT/held_out --steps 4 --grid docs/weights_x2.png --pictures 1 5 14

Each photograph's largest centred square, shrunk to --size, is the original; box-filtered by the booster's factor it is
the small photograph. PSNR and SSIM are means over photographs. Sharpness is an image's gradient energy over the
original's. "Fréchet" is the Fréchet distance, in the features of efficientnet-lite0, between 4 patches of each image
and the same patches of the originals; few patches for so many features, so compare it within one table alone.
"""

import argparse
import warnings

import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from fmboost_jax.boosting.booster import Booster
from fmboost_jax.data.crops import centres
from fmboost_jax.errors import run
from fmboost_jax.images.colour import FIXES, fix_colour
from fmboost_jax.images.grid import grid
from fmboost_jax.images.png import write_png
from fmboost_jax.images.resize import upsample
from fmboost_jax.images.value_range import to_float, to_uint8
from fmboost_jax.metrics.comparison import details
from fmboost_jax.metrics.features import FeatureNetwork, load_features
from fmboost_jax.metrics.frechet import FeatureStatistics, frechet_distance, patches
from fmboost_jax.metrics.images import gradient_energy, psnr, ssim

NOISE_STEPS = (0, 10, 50, 200)  # tried at inference
PATCHES, PATCH_PARTS = 4, 2  # of a photograph; a patch's side is the photograph's over PATCH_PARTS

Images = UInt8[np.ndarray, "n h w 3"]


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser("measure_weights", description=__doc__.splitlines()[0])
    parser.add_argument("booster", help="packaged name, bundle or run")
    parser.add_argument("photographs", help="folder of held-out photographs")
    parser.add_argument("--size", type=int, default=512, help="side of the originals, pixels (512)")
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 2, 4, 8, 20], help="Euler steps (1 2 4 8 20)")
    parser.add_argument("--limit", type=int, help="measure with the first so many photographs")
    parser.add_argument("--boosted-alone", action="store_true", help="leave out what is to be beaten")
    parser.add_argument("--controls", action="store_true", help="with 4 steps: colour fixes, noise steps at inference")
    parser.add_argument("--grid", help="write a PNG of some photographs, cut where they hold most detail")
    parser.add_argument("--pictures", type=int, nargs="+", default=[0, 1, 2], help="numbers of those photographs")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", UserWarning)  # fewer patches than features, as the docstring says
    booster = Booster.load(arguments.booster)
    originals = to_uint8(centres(arguments.photographs, arguments.size)[: arguments.limit])
    small = np.stack([_resized(image, arguments.size // booster.factor, Image.Resampling.BOX) for image in originals])
    network = load_features("efficientnet-lite0")
    reference = _statistics(network, originals)
    print(f"{len(originals)} photographs, {small.shape[1]}² → {originals.shape[1]}²\n")
    print("| | PSNR | SSIM | sharpness | Fréchet |\n| --- | --- | --- | --- | --- |")
    ways = {} if arguments.boosted_alone else others(booster, small, originals)
    for steps in arguments.steps:
        ways[f"boosted, Euler {steps}"] = lambda steps=steps: booster.upscale(small, steps=steps, batch_size=1)
    if arguments.controls:
        ways |= controls(booster, small)
    columns = {}
    for name, way in ways.items():
        columns[name] = images = way()
        distance = frechet_distance(_statistics(network, images), reference)
        print(f"| {name} | {' | '.join(_fidelity(images, originals))} | {distance:.1f} |", flush=True)
    if arguments.grid:
        columns["original"] = originals
        rows = [details([images[number] for images in columns.values()]) for number in arguments.pictures]
        write_png(arguments.grid, grid(rows, [name.partition(":")[0] for name in columns]))


def others(booster: Booster, small: Images, originals: Images) -> dict:
    """Ways to the large images without the flow, by name."""
    stage, size = booster.first_stage, originals.shape[1]

    def enlarged(filter_: Image.Resampling) -> Images:
        return np.stack([_resized(image, size, filter_) for image in small])

    def one_by_one(act, images: Images) -> Images:
        decoded = [stage.decode(act(jnp.asarray(to_float(image[None])))) for image in images]
        return to_uint8(np.concatenate(decoded))

    def encode(image):
        return stage.encode(image)

    def latent_upsampled(image):
        return upsample(encode(image), size // stage.downsampling, "bilinear")

    return {
        "bilinear": lambda: enlarged(Image.Resampling.BILINEAR),
        "bicubic": lambda: enlarged(Image.Resampling.BICUBIC),
        "LSU: latent bilinear, decoded": lambda: one_by_one(latent_upsampled, small),
        "PSU: image bilinear, encoded, decoded": lambda: one_by_one(
            lambda image: encode(upsample(image, size, "bilinear")), small
        ),
        "round trip: the original, encoded, decoded": lambda: one_by_one(encode, originals),
    }


def controls(booster: Booster, small: Images) -> dict:
    """What `sample` leaves off unless told: --colour-fix, --noise-step."""

    def boosted(**options):
        return booster.upscale(small, steps=4, batch_size=1, **options)

    fixes = {f"colour fix {kind}": lambda kind=kind: fix_colour(boosted(), small, kind) for kind in FIXES}
    return fixes | {f"noise step {step}": lambda step=step: boosted(noise_step=step) for step in NOISE_STEPS}


def _fidelity(images: Images, originals: Images) -> tuple[str, str, str]:
    scores = []
    for image, original in zip(images, originals, strict=True):
        found, truth = to_float(image[None]), to_float(original[None])
        scores.append((psnr(found, truth)[0], ssim(found, truth)[0], gradient_energy(found) / gradient_energy(truth)))
    means = np.mean([[float(np.squeeze(value)) for value in row] for row in scores], axis=0)
    return f"{means[0]:.2f} dB", f"{means[1]:.3f}", f"{means[2]:.2f}"


def _statistics(network: FeatureNetwork, images: Images) -> FeatureStatistics:
    statistics = FeatureStatistics(network.dimensions)
    for number, image in enumerate(images):
        cut = patches(image, str(number), size=image.shape[0] // PATCH_PARTS, count=PATCHES)
        statistics.update(network(cut))
    return statistics


def _resized(image: UInt8[np.ndarray, "h w 3"], size: int, filter_: Image.Resampling) -> UInt8[np.ndarray, "_ _ 3"]:
    return np.asarray(Image.fromarray(image).resize((size, size), filter_))


if __name__ == "__main__":
    run(main)
