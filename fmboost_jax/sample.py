"""Boost photographs or latents with a trained checkpoint.

    python -m fmboost_jax.sample --checkpoint RUN --input photo.jpg --out boosted
    python -m fmboost_jax.sample --checkpoint RUN --input PHOTOS --factor 2 --steps 20 --method midpoint --out boosted
    python -m fmboost_jax.sample --checkpoint RUN --input latents.npz --out boosted
    python -m fmboost_jax.sample --checkpoint RUN --input PHOTOS --compare --out boosted

Each result is a PNG whose text chunk `fmboost` holds the settings that made it; the same seed gives the same bytes.
"""

import argparse
import os
import pathlib
import sys
import zipfile

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from tqdm import tqdm

from fmboost_jax.booster import Booster
from fmboost_jax.data.images import UnusablePhoto, load_photo
from fmboost_jax.data.sources import FolderPhotos
from fmboost_jax.errors import InputError, run
from fmboost_jax.flow.solvers import METHODS
from fmboost_jax.metrics.images import gradient_energy, psnr, ssim
from fmboost_jax.pictures import grid, to_float, write_png

DETAIL = 4


def main(argv: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        "fmboost_jax.sample", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--checkpoint", required=True, metavar="DIR", help="a run's workdir, or one step of its checkpoints"
    )
    parser.add_argument(
        "--input",
        required=True,
        metavar="PATH",
        help="a photograph, a folder of them, or an .npz of scaled low-res latents (batch, height, width, channels)",
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="where the PNG files are to lie")
    parser.add_argument(
        "--factor", type=int, help="by how much to enlarge; what the checkpoint was trained for by default"
    )
    parser.add_argument("--steps", type=int, default=4, help="integration steps; more cost more (default 4)")
    parser.add_argument("--method", default="euler", choices=METHODS, help="ODE method (default euler)")
    parser.add_argument("--seed", type=int, default=0, help="of the noise augmentation (default 0)")
    parser.add_argument(
        "--compare",
        action="store_true",
        help="take the input as the original: shrink it by the factor, boost that, and set low-res | bilinear | "
        "boosted | original side by side, with PSNR and SSIM",
    )
    arguments = parser.parse_args(argv)
    if arguments.steps < 1:
        raise InputError(f"--steps must be 1 or more, found {arguments.steps}")
    booster = Booster.load(arguments.checkpoint)
    if arguments.factor not in (None, booster.factor):
        raise InputError(
            f"--factor {arguments.factor}: checkpoint {arguments.checkpoint} was trained to enlarge ×{booster.factor}"
        )
    os.makedirs(arguments.out, exist_ok=True)
    settings = {
        "checkpoint": os.path.basename(os.path.normpath(arguments.checkpoint)),
        "factor": booster.factor,
        "steps": arguments.steps,
        "method": arguments.method,
        "seed": arguments.seed,
        "noise_step": booster.source.noise_step,
        "start": booster.source.start,
    }
    if arguments.input.endswith(".npz"):
        _boost_latents(booster, arguments, settings)
    else:
        _boost_photographs(booster, arguments, settings)


def _boost_latents(booster: Booster, arguments: argparse.Namespace, settings: dict) -> None:
    try:
        with np.load(arguments.input, allow_pickle=False) as file:
            names = list(file)
            if len(names) != 1:
                raise InputError(
                    f"{arguments.input} must hold one array of latents, found {', '.join(names) or 'none'}"
                )
            latents = file[names[0]]
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"latents {arguments.input} cannot be read as .npz: {error}") from error
    for index in tqdm(range(len(latents)), unit="image"):
        options = {"steps": arguments.steps, "method": arguments.method, "seed": arguments.seed + index}
        image = booster.decode(booster.boost(latents[index : index + 1], **options))[0]
        write_png(os.path.join(arguments.out, f"{index:05d}.png"), image, {**settings, "seed": options["seed"]})


def _boost_photographs(booster: Booster, arguments: argparse.Namespace, settings: dict) -> None:
    photographs = _photographs(arguments.input)
    skipped, scores = [], []
    bar = tqdm(photographs.items(), unit="photo")
    for name, path in bar:
        try:
            with open(path, "rb") as file:
                photograph = np.asarray(load_photo(file))
        except (OSError, UnusablePhoto) as error:
            skipped.append(f"{name}: {error}")
            continue
        options = {"steps": arguments.steps, "method": arguments.method, "seed": arguments.seed}
        target = os.path.join(arguments.out, pathlib.PurePath(name).with_suffix("").as_posix())
        if not arguments.compare:
            write_png(f"{target}.png", booster.upscale(photograph[None], **options)[0], settings)
            continue
        pictures, values = _compare(booster, photograph, options)
        write_png(f"{target}.png", pictures["boosted"], settings)
        rows = [list(pictures.values()), _details(list(pictures.values()))]
        write_png(f"{target}_comparison.png", grid(rows, list(pictures)), settings)
        scores.append(values)
        bar.write(
            f"{name}: PSNR bilinear {values[0]:.2f}, boosted {values[1]:.2f} dB; SSIM {values[2]:.4f}, {values[3]:.4f}"
        )
    if scores:
        bilinear, boosted, ssim_bilinear, ssim_boosted = np.mean(scores, axis=0)
        print(
            f"mean of {len(scores)}: PSNR bilinear {bilinear:.2f} dB, boosted {boosted:.2f} dB; "
            f"SSIM bilinear {ssim_bilinear:.4f}, boosted {ssim_boosted:.4f}"
        )
    if skipped:
        print(f"{len(skipped)} of {len(photographs)} skipped:\n  " + "\n  ".join(skipped), file=sys.stderr)
        if len(skipped) == len(photographs):
            raise InputError(f"none of the photographs in {arguments.input} could be read")
    print(f"pictures in {arguments.out}")


def _photographs(path: str) -> dict[str, str]:
    """Names and paths of what `--input` names."""
    if os.path.isdir(path):
        return {name: os.path.join(path, name) for name in FolderPhotos(path).names}
    if not os.path.isfile(path):
        raise InputError(f"--input {path}: no such file or folder; expected a photograph, a folder of them, or an .npz")
    return {os.path.basename(path): path}


def _compare(booster: Booster, photograph: UInt8[np.ndarray, "h w 3"], options: dict):
    """The photograph shrunk, enlarged bilinearly, boosted and as it is; PSNR and SSIM of the two in the middle."""
    factor = booster.factor
    height, width = (side - side % factor for side in photograph.shape[:2])
    original = photograph[:height, :width]
    low = np.asarray(Image.fromarray(original).resize((width // factor, height // factor), Image.Resampling.BOX))
    bilinear = np.asarray(Image.fromarray(low).resize((width, height), Image.Resampling.BILINEAR))
    boosted = booster.upscale(low[None], **options)[0]
    truth = to_float(original[None])
    values = [
        float(metric(to_float(image[None]), truth)[0]) for metric in (psnr, ssim) for image in (bilinear, boosted)
    ]
    return {"low-res": low, "bilinear": bilinear, "boosted": boosted, "original": original}, values


def _details(pictures: list[UInt8[np.ndarray, "_ _ 3"]]) -> list[UInt8[np.ndarray, "_ _ 3"]]:
    """The quarter of each picture's sides where the last one, the original, holds most detail."""
    height, width = (side // DETAIL for side in pictures[-1].shape[:2])
    corners = [(top, left) for top in range(0, DETAIL * height, height) for left in range(0, DETAIL * width, width)]
    original = to_float(pictures[-1][None])
    patches = [original[:, top : top + height, left : left + width] for top, left in corners]
    top, left = corners[int(np.argmax([gradient_energy(patch)[0] for patch in patches]))]
    cut = []
    for picture in pictures:
        scale = pictures[-1].shape[0] // picture.shape[0]
        cut.append(picture[top // scale : (top + height) // scale, left // scale : (left + width) // scale])
    return cut


if __name__ == "__main__":
    run(main)
