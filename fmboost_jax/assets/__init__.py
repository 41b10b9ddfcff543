"""The weights that come with the package, by name: the boosters `photo-x2` and `photo-x4` on the latents of
`photo-autoencoder`, `photo-x4-looks`, which prefers texture to accuracy, and `flux2-x2` on FLUX.2's latents, whose
autoencoder is not part of the package. `demo-autoencoder` is a small one to train with in minutes.

Each is a folder here, with a model card as its README.md. `Booster.load`, `--booster` and `first_stage.path` take the
name in place of a folder; a folder of that name, where there is one, comes first.
"""

import pathlib

NAMES = ("demo-autoencoder", "flux2-x2", "photo-autoencoder", "photo-x2", "photo-x4", "photo-x4-looks")
DEFAULT_BOOSTER = "photo-x2"


def packaged_folder(name: str) -> str | None:
    """The folder of packaged weights of this name; None for any other name."""
    return str(pathlib.Path(__file__).parent / name) if name in NAMES else None
