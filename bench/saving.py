"""What an asynchronous checkpoint costs the training that goes on beside it.

    python -m bench.saving

A train step of the UNet runs alone, then with a save every few steps, as in `fmboost_jax.training.loop`. `save` returns
when the state is copied; the files are written while the next steps run. The columns are the seconds of a step alone,
the seconds for which `save` holds the loop up, those of NumPy's copy of the same arrays (no save can be faster), and
the seconds of a step while files are written. The last column is all that a save costs, over the time that the steps
until the next one take alone.
"""

import argparse
import itertools
import pathlib
import statistics
import tempfile
import threading
import time

from bench.networks import Work, trainer, write_weights

HEADINGS = (
    *("a step alone, s", "held up by `save`, s", "a copy of the arrays, s"),
    *("a step while files are written, s", "steps", "cost of a save"),
)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser("bench.saving", description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=128, help="the UNet's model_channels (128)")
    parser.add_argument("--latent", type=int, default=32, help="height and width of the latents (32)")
    parser.add_argument("--batch", type=int, default=2, help="latents at once (2)")
    parser.add_argument("--every", type=int, default=100, help="steps from one save to the next, for the share (100)")
    parser.add_argument("--saves", type=int, default=3, help="how many; the first is not counted (3)")
    arguments = parser.parse_args()
    if arguments.saves < 2:
        parser.error(f"--saves must be 2 or more, found {arguments.saves}: the first is not counted")
    with tempfile.TemporaryDirectory() as folder:
        unet, weights = {"model_channels": arguments.width}, pathlib.Path(folder) / "unet.safetensors"
        write_weights(weights, unet)
        work = Work(weights, unet, arguments.batch, arguments.latent)
        print(measure(work, pathlib.Path(folder), every=arguments.every, saves=arguments.saves))


def measure(work: Work, folder: pathlib.Path, *, every: int, saves: int) -> str:
    """The table's only row; checkpoints go into `folder`."""
    import jax
    import numpy as np

    from bench.storage import write_records
    from fmboost_jax.data.dataset import DatasetInfo
    from fmboost_jax.data.pipeline import batches
    from fmboost_jax.training.checkpoints import Checkpoints

    write_records(folder / "records")
    iterator = iter(batches(DatasetInfo.read(folder / "records"), batch_size=1, seed=0))
    next(iterator)
    step, state = trainer(work)
    size = sum(array.nbytes for array in jax.tree.leaves(state()))
    checkpoints, numbers = Checkpoints(str(folder), keep=1), itertools.count(1)
    step()
    alone = [_timed(step) for _ in range(5)]
    copying = [_timed(lambda: [np.array(leaf) for leaf in jax.tree.leaves(state())]) for _ in range(saves)]
    held, beside = [], []
    for save in range(saves):
        seconds = _timed(lambda: checkpoints.save(next(numbers), state(), iterator, {}))
        during = []
        writing = threading.Thread(target=checkpoints.wait)
        writing.start()
        while writing.is_alive():
            during.append(_timed(step))
        writing.join()
        alone.append(_timed(step))
        if save:
            held.append(seconds)
            beside.append(during)
    checkpoints.close()
    iterator.close()
    rows = (alone, held, copying, itertools.chain(*beside))
    plain, waiting, copy, slowed = (statistics.median(times) for times in rows)
    steps = statistics.mean(len(times) for times in beside)
    lost = waiting + statistics.mean(sum(times) - len(times) * plain for times in beside)
    cells = [
        f"{plain:.3f}",
        f"{waiting:.3f}",
        f"{copy:.3f}",
        f"{slowed:.3f}",
        f"{steps:.0f}",
        f"{lost:.2f} s, {lost / every / plain:.1%}",
    ]
    title = f"### Training beside an asynchronous save of {size / 1e9:.1f} GB, one every {every} steps"
    return "\n".join([title, "", *(f"| {' | '.join(row)} |" for row in (HEADINGS, ["---"] * len(HEADINGS), cells))])


def _timed(function) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
