"""Records of a run: `metrics.jsonl`, TensorBoard scalars and image grids."""

import json
import os

import numpy as np
from jaxtyping import UInt8

from fmboost_jax.files import write_atomically
from fmboost_jax.images.png import write_png


class Logs:
    """Writer of one run's records; only the first process of a pod has one.

    Args:
        workdir: folder of the run: `metrics.jsonl`, `tensorboard/`, `pictures/`.
        step: where the run goes on; records of later steps, from before an interruption, are dropped.
    """

    def __init__(self, workdir: str, step: int):
        from tensorboardX import SummaryWriter  # Here, since it imports PyTorch where that is installed: seconds.

        self._workdir = workdir
        self._path = os.path.join(workdir, "metrics.jsonl")
        kept = [line for line in _lines(self._path) if json.loads(line)["step"] <= step]
        write_atomically(self._path, "".join(line + "\n" for line in kept).encode())
        self._file = open(self._path, "a", encoding="utf-8")  # noqa: SIM115 (lives as long as the run)
        self._board = SummaryWriter(os.path.join(workdir, "tensorboard"), purge_step=step)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """One line of `metrics.jsonl` and as many TensorBoard scalars."""
        values = {name: float(value) for name, value in values.items()}
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def image(self, step: int, name: str, image: UInt8[np.ndarray, "h w 3"]) -> str:
        """`pictures/<name>_<step>.png` and the same in TensorBoard; returns its path."""
        path = os.path.join(self._workdir, "pictures", f"{name}_{step:08d}.png")
        write_png(path, image, {"step": step})
        self._board.add_image(name, image, step, dataformats="HWC")
        return path

    def close(self) -> None:
        """Flush and close all."""
        self._file.close()
        self._board.close()


def _lines(path: str) -> list[str]:
    """Whole lines of a file that a crash may have cut short; none where there is no file."""
    if not os.path.exists(path):
        return []
    with open(path, encoding="utf-8") as file:
        return [line.rstrip("\n") for line in file if line.endswith("\n")]
