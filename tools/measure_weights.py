"""The tables of docs/weights.md: a booster and its baselines on held-out photographs.

    python tools/measure_weights.py photo-x2 SPLIT/held_out
    python tools/measure_weights.py photo-x2 SPLIT/held_out --boosted-alone --steps 4 --controls
    python tools/measure_weights.py RUN SPLIT/held_out --steps 4 --limit 12
    python tools/measure_weights.py photo-x2 SPLIT/held_out --steps 1 --grid grid.png --pictures 1 5 14
    python tools/measure_weights.py photo-x2 SPLIT/held_out --from-latents --steps 1 2 4 20
    python tools/measure_weights.py photo-x4 SPLIT/held_out --add Real-ESRGAN=FOLDER

Each photograph's largest centred square, shrunk to --size, is the original; box-filtered by the booster's factor it is
the small photograph. With --from-latents, all methods get only its latent. PSNR, SSIM and SSIMULACRA2 (the package
`ssimulacra2`) are means over photographs. "Consistent" is --colour-fix consistency with the small photograph, or with
--from-latents, with what its latent decodes to; "half consistent" is half of that correction. Sharpness is an image's
gradient energy over the original's. "Fréchet" is the Fréchet distance, in the features of efficientnet-lite0, between 4
patches of each image and the same patches of the originals. With so few patches it is comparable only within one table.
"Small" is the PSNR of the image, box-filtered to the small photograph's size, against that photograph. PIQE
(Venkatanath et al. 2015; the package `pypiqe`) rates an image without the original; 0 is best. Seconds are of one
photograph on this machine, without compilation.
"""

import argparse
import itertools
import pathlib
import time
import warnings

import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8
from PIL import Image
from pypiqe import piqe

from fmboost_jax.boosting.booster import Booster
from fmboost_jax.data.crops import centres
from fmboost_jax.errors import run
from fmboost_jax.flow.coupling import pixel_space_upsample
from fmboost_jax.images.colour import FIXES, fix_colour
from fmboost_jax.images.grid import grid
from fmboost_jax.images.png import write_png
from fmboost_jax.images.resize import upsample
from fmboost_jax.images.value_range import to_float, to_uint8
from fmboost_jax.metrics.comparison import details
from fmboost_jax.metrics.features import FeatureNetwork, load_features
from fmboost_jax.metrics.frechet import FeatureStatistics, frechet_distance, patches
from fmboost_jax.metrics.images import gradient_energy, psnr, ssim
from fmboost_jax.metrics.perceptual import ssimulacra2

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
    parser.add_argument("--limit", type=int, help="number of photographs, evenly spread over the folder (default: all)")
    parser.add_argument("--from-latents", action="store_true", help="give only the small photographs' latents")
    parser.add_argument("--small", help="write the small photographs as PNG into a folder, for another tool")
    parser.add_argument(
        "--add", action="append", default=[], metavar="NAME=FOLDER", help="a row: what another tool made of --small"
    )
    parser.add_argument("--boosted-alone", action="store_true", help="leave out the baselines")
    parser.add_argument("--controls", action="store_true", help="with 4 steps: colour fixes, noise steps, orientations")
    parser.add_argument("--grid", help="write a PNG of some photographs, cut where they hold most detail")
    parser.add_argument("--pictures", type=int, nargs="+", default=[0, 1, 2], help="numbers of those photographs")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", UserWarning)  # fewer patches than features, see the docstring
    booster = Booster.load(arguments.booster)
    originals = to_uint8(centres(arguments.photographs, arguments.size))
    if arguments.limit:
        originals = originals[np.linspace(0, len(originals) - 1, arguments.limit).round().astype(int)]
    small = np.stack([_resized(image, arguments.size // booster.factor, Image.Resampling.BOX) for image in originals])
    network = load_features("efficientnet-lite0")
    reference = _statistics(network, originals)
    print(f"{len(originals)} photographs, {small.shape[1]}² → {originals.shape[1]}²\n")
    print("| | PSNR | SSIM | SSIMULACRA2 | small | sharpness | PIQE | Fréchet | seconds |\n" + "| --- " * 9 + "|")
    ways = boosts(booster, small, arguments.steps, from_latents=arguments.from_latents)
    if not arguments.boosted_alone:
        ways = (from_latents if arguments.from_latents else others)(booster, small, originals) | ways
    if arguments.controls:
        ways |= controls(booster, small)
    if arguments.small:
        write_small(pathlib.Path(arguments.small), booster, small, from_latents=arguments.from_latents)
    for word in arguments.add:
        name, _, folder = word.partition("=")
        ways[name] = lambda folder=folder: _read_numbered(pathlib.Path(folder), len(originals))
    columns = {}
    for name, way in ways.items():
        columns[name] = images = way()
        started = time.perf_counter()
        way()
        seconds = (time.perf_counter() - started) / len(originals)
        distance = frechet_distance(_statistics(network, images), reference)
        print(
            f"| {name} | {' | '.join(_fidelity(images, originals, small))} | {distance:.1f} | {seconds:.2f} |",
            flush=True,
        )
    if arguments.grid:
        columns["original"] = originals
        rows = [details([images[number] for images in columns.values()]) for number in arguments.pictures]
        write_png(arguments.grid, grid(rows, [name.partition(":")[0] for name in columns]))


def others(booster: Booster, small: Images, originals: Images) -> dict:
    """Large images without the flow, by method."""
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
        "bicubic, consistent": lambda: fix_colour(enlarged(Image.Resampling.BICUBIC), small, "consistency"),
        "LSU: latent bilinear, decoded": lambda: one_by_one(latent_upsampled, small),
        "PSU: image bilinear, encoded, decoded": lambda: one_by_one(
            lambda image: encode(upsample(image, size, "bilinear")), small
        ),
        "round trip: the original, encoded, decoded": lambda: one_by_one(encode, originals),
    }


def from_latents(booster: Booster, small: Images, originals: Images) -> dict:
    """Large images from the small photographs' latents without the flow, and the autoencoder's upper bound."""
    stage, size = booster.first_stage, originals.shape[1]
    latents = small_latents(booster, small)

    def decode(latent) -> UInt8[np.ndarray, "h w 3"]:
        return to_uint8(np.asarray(stage.decode(latent)))[0]

    def latent_upsampled(latent):
        return upsample(latent, size // stage.downsampling, "bilinear")

    def through_pixels(latent):
        return pixel_space_upsample(latent, size // stage.downsampling, stage.encode, stage.decode)

    def enlarged(filter_: Image.Resampling) -> Images:
        return np.stack([_resized(decode(latent), size, filter_) for latent in latents])

    return {
        "decoded, bilinear": lambda: enlarged(Image.Resampling.BILINEAR),
        "decoded, bicubic": lambda: enlarged(Image.Resampling.BICUBIC),
        "decoded, bicubic, consistent": lambda: fix_colour(
            enlarged(Image.Resampling.BICUBIC), decoded(booster, small), "consistency"
        ),
        "LSU: latent bilinear, decoded": lambda: np.stack([decode(latent_upsampled(latent)) for latent in latents]),
        "PSU: decoded, bilinear, encoded, decoded": lambda: np.stack(
            [decode(through_pixels(latent)) for latent in latents]
        ),
        "ceiling: round trip of the original": lambda: np.stack(
            [decode(stage.encode(to_float(image[None]))) for image in originals]
        ),
    }


def boosts(booster: Booster, small: Images, steps: list[int], *, from_latents: bool) -> dict:
    """Boosts in several numbers of Euler steps, by name."""

    def boost(count: int) -> Images:
        if not from_latents:
            return booster.upscale(small, steps=count, batch_size=1, colour_fix=None)
        latents = np.concatenate(small_latents(booster, small))
        return np.asarray(booster.decode(booster.boost(latents, steps=count, batch_size=1), batch_size=1))

    ways = {f"boosted, Euler {count}": lambda count=count: boost(count) for count in steps}

    word, strength = ("half consistent", 0.5) if from_latents else ("consistent", 1.0)

    def consistent(way) -> Images:
        return fix_colour(way(), decoded(booster, small) if from_latents else small, "consistency", strength)

    return ways | {f"{name}, {word}": lambda way=way: consistent(way) for name, way in ways.items()}


def small_latents(booster: Booster, small: Images) -> list:
    """The latents of the small photographs, of the encoder alone, as those of a base model."""
    return [booster.first_stage.plain.encode(to_float(image[None])) for image in small]


def decoded(booster: Booster, small: Images) -> Images:
    """What the latents of the small photographs decode to."""
    stage = booster.first_stage
    return np.concatenate([to_uint8(np.asarray(stage.decode(latent))) for latent in small_latents(booster, small)])


def write_small(folder: pathlib.Path, booster: Booster, small: Images, *, from_latents: bool) -> None:
    """Write 000.png, 001.png, …: the small photographs, or what their latents decode to."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(decoded(booster, small) if from_latents else small):
        Image.fromarray(image).save(folder / f"{number:03}.png")


def _read_numbered(folder: pathlib.Path, count: int) -> Images:
    return np.stack([np.asarray(Image.open(folder / f"{number:03}.png").convert("RGB")) for number in range(count)])


def controls(booster: Booster, small: Images) -> dict:
    """Return boosts with other colour fixes and noise steps than the default."""

    def boosted(**options):
        return booster.upscale(small, steps=4, batch_size=1, colour_fix=None, **options)

    fixes = {f"colour fix {kind}": lambda kind=kind: fix_colour(boosted(), small, kind) for kind in FIXES}
    steps = {f"noise step {step}": lambda step=step: boosted(noise_step=step) for step in NOISE_STEPS}
    return fixes | steps | {"mean of 8 orientations, consistent": lambda: oriented(booster, small)}


def oriented(booster: Booster, small: Images) -> Images:
    """Boost every rotation and reflection of the images and average the results; consistent with the small images."""
    total = np.zeros(1, np.float64)
    for turns, mirrored in itertools.product(range(4), (False, True)):
        turned = np.rot90(small, turns, (1, 2))
        images = np.ascontiguousarray(turned[:, :, ::-1] if mirrored else turned)
        large = booster.upscale(images, batch_size=1, colour_fix=None)
        total = total + np.rot90(large[:, :, ::-1] if mirrored else large, -turns, (1, 2))
    return fix_colour((total / 8).round().astype(np.uint8), small, "consistency")


def _fidelity(images: Images, originals: Images, small: Images) -> tuple[str, str, str, str, str, str]:
    scores = []
    for image, original, given in zip(images, originals, small, strict=True):
        found, truth = to_float(image[None]), to_float(original[None])
        shrunk = _resized(image, given.shape[0], Image.Resampling.BOX)
        sharpness = gradient_energy(found) / gradient_energy(truth)
        consistency = psnr(to_float(shrunk[None]), to_float(given[None]))[0]
        scores.append((psnr(found, truth)[0], ssim(found, truth)[0], consistency, sharpness))
    means = np.mean([[float(np.squeeze(value)) for value in row] for row in scores], axis=0)
    unaided = np.mean([piqe(np.ascontiguousarray(image))[0] for image in images])
    likeness = np.mean([ssimulacra2(image, original) for image, original in zip(images, originals, strict=True)])
    return (
        f"{means[0]:.2f} dB",
        f"{means[1]:.3f}",
        f"{likeness:.1f}",
        f"{means[2]:.1f} dB",
        f"{means[3]:.2f}",
        f"{unaided:.0f}",
    )


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
