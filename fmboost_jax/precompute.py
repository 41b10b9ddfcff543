"""Make a dataset of latent pairs from photographs.

    python -m fmboost_jax.precompute --config configs/demo.py --images PHOTOS --out DATA
    python -m fmboost_jax.precompute --config configs/cfm1024.py --tfds div2k:train --out DATA

Each photograph gives one centre crop, or `config.data.crops` random crops (see fmboost_jax.images.photos). The crop is
the high-res image. The low-res image is the crop shrunk to `config.data.low_res`; each of its pixels is the mean of the
pixels that it covers. The first stage encodes both; with PSU it encodes the low-res image after bilinear enlargement.
For a booster of small latents set `config.data.low_res_source` to "latents": the low-res image is then decoded from the
latent of the small photograph.

For reflow a trained flow makes the high-res latents, from the low-res latents of a finished dataset:

    python -m fmboost_jax.precompute --config CONFIG --pairs DATA --teacher RUN --teacher-steps 20 --out REFLOW
    python -m fmboost_jax.train --config CONFIG --config.objective=reflow --config.data.dir=REFLOW --workdir RUN2

An interrupted command continues when it is started again, and writes the same bytes on the same kind of device. Shards
with a wrong checksum are written again. To share the work among processes, start the same command in each with its own
--process-index; the last process to finish writes dataset.json. Photographs that cannot be used are skipped and listed
at the end.
"""

import argparse
import dataclasses
import pathlib
import sys
import warnings

import jax
from PIL import Image

from fmboost_jax.boosting.booster import Booster
from fmboost_jax.boosting.teacher import teach
from fmboost_jax.configuration import add_share_options, parse_arguments
from fmboost_jax.data.dataset import DatasetInfo, Recipe
from fmboost_jax.data.pairs import precompute
from fmboost_jax.data.reflow import reflow_pairs
from fmboost_jax.data.sources import FolderPhotos, TFDSPhotos
from fmboost_jax.errors import InputError, run
from fmboost_jax.flow.solvers import Solver
from fmboost_jax.interop.autoencoders import load_first_stage
from fmboost_jax.models.first_stage import FirstStage
from fmboost_jax.training.config import TrainingConfig

# Arguments that divide the work.
SHARE = ("process_index", "process_count", "records_per_shard", "batch_size")


def main(argv: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        "fmboost_jax.precompute", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    photos = parser.add_mutually_exclusive_group(required=True)
    photos.add_argument("--images", metavar="FOLDER", help="folder of image files, searched with its subfolders")
    photos.add_argument("--tfds", metavar="NAME:SPLIT[:DATA_DIR]", help="TFDS dataset, needs the extra [tfds]")
    photos.add_argument("--pairs", metavar="FOLDER", help="dataset of latent pairs that --teacher boosts, for reflow")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="folder that the dataset is written to")
    add_share_options(parser)
    parser.add_argument(
        "--records-per-shard", type=int, default=1024, help="approximate pairs per file (default: 1024)"
    )
    parser.add_argument("--batch-size", type=int, default=8, help="images encoded at the same time (default: 8)")
    reflow = parser.add_argument_group("reflow")
    reflow.add_argument("--teacher", metavar="RUN", help="training run or bundle of the flow that boosts --pairs")
    reflow.add_argument("--teacher-steps", type=int, default=20, help="Euler steps of the teacher (default: 20)")
    reflow.add_argument("--draws", type=int, default=1, help="draws of noise for each pair (default: 1)")
    arguments, config = parse_arguments(parser, sys.argv[1:] if argv is None else argv, TrainingConfig)
    if (arguments.pairs is None) != (arguments.teacher is None):
        raise InputError("--pairs and --teacher go together: the dataset, and the flow that boosts it")
    for name in ("records_per_shard", "batch_size", "teacher_steps", "draws"):
        if getattr(arguments, name) < 1:
            raise InputError(f"--{name.replace('_', '-')} is {getattr(arguments, name)}, expected 1 or more")
    out = pathlib.Path(arguments.out)
    if arguments.images and out.resolve().is_relative_to(pathlib.Path(arguments.images).resolve()):
        raise InputError(f"--out {out} is inside the photo folder {arguments.images}; choose a folder outside")
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # such images are skipped
    first_stage = load_first_stage(**dataclasses.asdict(config.first_stage))
    share = {name: getattr(arguments, name) for name in SHARE}
    try:
        if arguments.pairs:
            _reflow(config, first_stage, arguments, out, share)
        else:
            recipe = Recipe.of(config.data, first_stage, config.seed)
            source = FolderPhotos(arguments.images) if arguments.images else TFDSPhotos(arguments.tfds)
            precompute(source, recipe, first_stage, out, num_threads=config.data.num_threads, **share)
    except OSError as error:
        raise InputError(
            f"cannot write {error.filename or out}: {error.strerror}; then run the same command again"
        ) from error


def _reflow(
    config: TrainingConfig, first_stage: FirstStage, arguments: argparse.Namespace, out: pathlib.Path, share: dict
) -> None:
    pairs = DatasetInfo.read(arguments.pairs)
    pairs.check(config.data, first_stage)
    booster = Booster.load(arguments.teacher, devices=jax.devices())
    solver = Solver("euler", arguments.teacher_steps)
    teacher, boost = teach(booster, pairs, solver, draws=arguments.draws, seed=config.seed)
    reflow_pairs(pairs, teacher, boost, first_stage, out, batch_multiple=booster.mesh.size, **share)


if __name__ == "__main__":
    run(main)
