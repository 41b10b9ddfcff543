"""The weights that come with the package, by name: the boosters `photo-x2` and `photo-x4` on the latents of
`photo-autoencoder`, smaller ones, `demo-x2` and `demo-x4`, on those of `demo-autoencoder`, and `flux2-x2` on FLUX.2's
latents, whose autoencoder is not part of the package.

Each is a folder here, with a model card as its README.md. `Booster.load`, `--booster` and `first_stage.path` take the
name in place of a folder; a folder of that name, where there is one, comes first.
"""

import pathlib

NAMES = ("demo-autoencoder", "demo-x2", "demo-x4", "flux2-x2", "photo-autoencoder", "photo-x2", "photo-x4")
DEFAULT_BOOSTER = "photo-x2"


def packaged_folder(name: str) -> str | None:
    """The folder of packaged weights of this name; None for any other name."""
    return str(pathlib.Path(__file__).parent / name) if name in NAMES else None
