"""How much of an image's power has the period of the latent's grid: patterns that a network draws, not photographs.

    python tools/grid_pattern.py photo-x4 SPLIT/held_out
    python tools/grid_pattern.py photo-x4 SPLIT/held_out RUN …

Prints, for periods of 8 and 4 pixels, the logarithm (base 10) of the power at the grid's frequencies over that of the
neighbouring frequencies; 0 means no pattern. The mean is over photographs and frequencies. Rows: the originals, their
round trip through the autoencoder, the small photographs enlarged, the same after the round trip (where a flow starts),
and the results of the booster and of further runs in their recommended steps, consistent with the small photographs.
"""

import argparse
import itertools
import warnings

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from fmboost_jax.boosting.booster import Booster
from fmboost_jax.data.crops import centres
from fmboost_jax.errors import run
from fmboost_jax.flow.coupling import PSU_FILTERS
from fmboost_jax.images.resize import upsample
from fmboost_jax.images.value_range import to_float, to_uint8

SIDE = 512  # pixels of the originals
PERIODS = (8, 4)
NEAR, FAR = 1, 6  # bins around a grid frequency that count as the pattern, and as its surroundings
HIGHEST = 200  # bins from 0; above them photographs have little power

Images = UInt8[np.ndarray, "n h w 3"]


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser("grid_pattern", description=__doc__.splitlines()[0])
    parser.add_argument("booster", help="packaged name, bundle or run")
    parser.add_argument("photographs", help="folder of held-out photographs")
    parser.add_argument("runs", nargs="*", help="further boosters of the same factor")
    parser.add_argument("--every", type=int, default=3, help="take every Nth photograph (default: 3)")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", UserWarning)
    booster = Booster.load(arguments.booster)
    stage = booster.first_stage
    originals = to_uint8(centres(arguments.photographs, SIDE))[:: arguments.every]
    side = SIDE // booster.factor
    small = np.stack(
        [np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BOX)) for image in originals]
    )

    def round_trip(images: Images) -> Images:
        decoded = [stage.decode(stage.encode(jnp.asarray(to_float(image[None])))) for image in images]
        return to_uint8(np.concatenate(decoded))

    rows = {"originals": originals, "originals, round trip": round_trip(originals)}
    for pixel_filter in PSU_FILTERS.values():
        enlarged = to_uint8(np.asarray(upsample(jnp.asarray(to_float(small)), SIDE, pixel_filter)))
        rows |= {pixel_filter: enlarged, f"{pixel_filter}, round trip": round_trip(enlarged)}
    print("| | " + " | ".join(f"{period} pixels" for period in PERIODS) + " |\n" + "| --- " * (len(PERIODS) + 1) + "|")
    for name, images in rows.items():
        _print_row(name, images)
    for name in (arguments.booster, *arguments.runs):
        _print_row(name, Booster.load(name).upscale(small, batch_size=1))


def _print_row(name: str, images: Images) -> None:
    values = (np.mean([excess(image, period) for image in images]) for period in PERIODS)
    print(f"| {name} | " + " | ".join(f"{value:.2f}" for value in values) + " |", flush=True)


def excess(image: UInt8[np.ndarray, "h h 3"], period: int) -> float:
    """Mean over a grid's frequencies of log10(power there / power around).

    Frequencies that longer periods share with the shortest of `PERIODS` count for the shortest alone.
    """
    power = _power(image.astype(np.float64).mean(axis=-1))
    side, around = len(power), np.arange(-FAR, FAR + 1)
    distance = np.maximum(*np.abs(np.meshgrid(around, around)))
    shortest, ratios = side // min(PERIODS), []
    for row, column in itertools.product(range(0, side, side // period), repeat=2):
        low = max(min(row, side - row), min(column, side - column)) <= HIGHEST
        shared = period != min(PERIODS) and row % shortest == column % shortest == 0
        if row == column == 0 or shared or not low:
            continue
        patch = power[np.ix_((row + around) % side, (column + around) % side)]
        ratios.append(np.log10(patch[distance <= NEAR].mean() / patch[distance > NEAR + 1].mean()))
    return float(np.mean(ratios))


def _power(grey: Float[np.ndarray, "h h"]) -> Float[np.ndarray, "h h"]:
    """Squared magnitudes of the Fourier transform, under a Hann window that removes the edges' cross."""
    window = np.hanning(len(grey))
    return np.abs(np.fft.fft2((grey - grey.mean()) * window[:, None] * window)) ** 2


if __name__ == "__main__":
    run(main)
