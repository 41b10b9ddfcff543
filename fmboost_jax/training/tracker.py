"""Experiment trackers beside `metrics.jsonl` and TensorBoard: Weights & Biases, or trackio.

Both have one interface: `init`, `log`, `Image`, `finish`. trackio stores its records locally (TRACKIO_DIR). wandb
stores them locally with WANDB_MODE=offline; otherwise it sends them to its server. A resumed run appends to them.
"""

import hashlib
import importlib
import importlib.util
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import UInt8

from fmboost_jax.errors import InputError
from fmboost_jax.registry import check_name

PROJECT = "fmboost_jax"

# Options of each package's `init`, from a run's folder.
TRACKERS: dict[str, Callable[[str], dict[str, Any]]] = {
    "wandb": lambda folder: {
        "project": os.environ.get("WANDB_PROJECT", PROJECT),
        "id": hashlib.sha256(folder.encode()).hexdigest()[:16],
        "dir": folder,
    },
    "trackio": lambda folder: {"project": os.environ.get("TRACKIO_PROJECT", PROJECT), "embed": False},
}


def check_tracker(name: str) -> None:
    """Refuse a tracker that is not installed; "" is none.

    Raises:
        InputError: an unknown name, or a missing package.
    """
    if not name:
        return
    check_name("train.tracker", name, ("", *TRACKERS))
    if importlib.util.find_spec(name) is None:
        raise InputError(f"train.tracker is {name}, which is not installed: pip install {name}")


class Tracker:
    """A run's records in a tracker.

    Args:
        name: key of `TRACKERS`.
        workdir: folder of the run; its last part names the run.
        config: the run's config, as nested dictionaries.
    """

    def __init__(self, name: str, workdir: str, config: Mapping[str, Any]):
        folder = os.path.abspath(workdir)
        self._package = importlib.import_module(name)
        options = TRACKERS[name](folder)
        self._package.init(name=os.path.basename(folder), config=dict(config), resume="allow", **options)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Record scalars."""
        self._package.log(dict(values), step=step)

    def image(self, step: int, name: str, image: UInt8[np.ndarray, "h w 3"]) -> None:
        """Record an image."""
        self._package.log({name: self._package.Image(image)}, step=step)

    def close(self) -> None:
        """Write pending records and close."""
        self._package.finish()
