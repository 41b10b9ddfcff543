"""Records of a run: `metrics.jsonl`, TensorBoard scalars and image grids, and an experiment tracker's."""

import json
import os
import sys
from typing import Any

import numpy as np
from jaxtyping import UInt8

from fmboost_jax.files import write_atomically
from fmboost_jax.images.png import write_png
from fmboost_jax.training.tracker import Tracker


class Logs:
    """Writer of one run's records; only the first process of a pod has one.

    Args:
        workdir: folder of the run: `metrics.jsonl`, `tensorboard/`, `pictures/`.
        step: where the run continues; records of later steps, from before an interruption, are dropped.
        tracker: keeps the same records. Default: none.
    """

    def __init__(self, workdir: str, step: int, tracker: Tracker | None = None):
        self._workdir = workdir
        self._path = os.path.join(workdir, "metrics.jsonl")
        kept = [line for line in _lines(self._path) if (at := _step(line)) is not None and at <= step]
        write_atomically(self._path, b"".join(kept))
        self._file = open(self._path, "a", encoding="utf-8")  # noqa: SIM115 (lives as long as the run)
        self._board = _summary_writer()(os.path.join(workdir, "tensorboard"), purge_step=step)
        self._tracker = tracker

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """One line of `metrics.jsonl` and as many TensorBoard scalars."""
        values = {name: float(value) for name, value in values.items()}
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(name, value, step)
        if self._tracker:
            self._tracker.scalars(step, values)

    def image(self, step: int, name: str, image: UInt8[np.ndarray, "h w 3"]) -> str:
        """`pictures/<name>_<step>.png` and the same in TensorBoard; returns its path."""
        path = os.path.join(self._workdir, "pictures", f"{name}_{step:08d}.png")
        write_png(path, image, {"step": step})
        self._board.add_image(name, image, step, dataformats="HWC")
        if self._tracker:
            self._tracker.image(step, name, image)
        return path

    def close(self) -> None:
        """Flush and close all."""
        self._file.close()
        self._board.close()
        if self._tracker:
            self._tracker.close()


def _summary_writer():
    """Return tensorboardX's writer. PyTorch is hidden while it is imported: that takes seconds, for unused tensors."""
    hidden: dict[str, Any] = {} if "torch" in sys.modules else {"torch": None}
    sys.modules.update(hidden)
    try:
        from tensorboardX import SummaryWriter
    finally:
        for name in hidden:
            del sys.modules[name]
    return SummaryWriter


def _lines(path: str) -> list[bytes]:
    """Lines of a file; none if it does not exist."""
    if not os.path.exists(path):
        return []
    with open(path, "rb") as file:
        return file.readlines()


def _step(line: bytes) -> int | None:
    """The step of a record; None for the remains of a crash: part of a line, or zeros."""
    try:
        return int(json.loads(line)["step"]) if line.endswith(b"\n") else None
    except (ValueError, TypeError, KeyError):
        return None
