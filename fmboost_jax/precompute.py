"""Make a dataset of latent pairs out of photographs.

    python -m fmboost_jax.precompute --config configs/demo.py --images PHOTOS --out DATA
    python -m fmboost_jax.precompute --config configs/cfm1024.py --tfds div2k:train --out DATA

Each photograph gives one centre crop or `config.data.crops` random ones (see fmboost_jax.images.photos). A crop is the
high-res image; shrunk to `config.data.low_res`, each pixel the mean of what it covers, it is the low-res one. Both are
encoded by the first stage, with PSU the low-res one after bilinear enlargement. A booster for small latents wants
`config.data.low_res_source` "latents": the low-res image then is the decoded latent of the small photograph.

Interrupted at any moment, the same command goes on where it was, and on the same kind of device its result has the
same bytes. A shard that no longer has its checksum is made again. To share the work give each process the same command
and its own --process-index; the last one to finish writes dataset.json. What cannot be used is skipped, and named at
the end.
"""

import argparse
import dataclasses
import pathlib
import sys
import warnings

from PIL import Image

from fmboost_jax.configuration import parse_arguments
from fmboost_jax.data.dataset import Recipe
from fmboost_jax.data.pairs import precompute
from fmboost_jax.data.sources import FolderPhotos, TFDSPhotos
from fmboost_jax.errors import InputError, run
from fmboost_jax.interop.autoencoders import load_first_stage
from fmboost_jax.parallel.distributed import add_share_arguments
from fmboost_jax.training.config import TrainingConfig


def main(argv: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        "fmboost_jax.precompute", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    photos = parser.add_mutually_exclusive_group(required=True)
    photos.add_argument("--images", metavar="FOLDER", help="folder of JPEG, PNG and WebP files; subfolders count")
    photos.add_argument("--tfds", metavar="NAME:SPLIT[:DATA_DIR]", help="TFDS dataset, needs the extra [tfds]")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="folder that the dataset is written to")
    add_share_arguments(parser)
    parser.add_argument("--records-per-shard", type=int, default=1024, help="about so many pairs to a file (1024)")
    parser.add_argument("--batch-size", type=int, default=8, help="images encoded at once (8)")
    arguments, config = parse_arguments(parser, sys.argv[1:] if argv is None else argv, TrainingConfig)
    for name in ("records_per_shard", "batch_size"):
        if getattr(arguments, name) < 1:
            raise InputError(f"--{name.replace('_', '-')} is {getattr(arguments, name)}, expected 1 or more")
    out = pathlib.Path(arguments.out)
    if arguments.images and out.resolve().is_relative_to(pathlib.Path(arguments.images).resolve()):
        raise InputError(f"--out {out} lies in the photo folder {arguments.images}; choose one outside")
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # what is too large by far is skipped
    first_stage = load_first_stage(**dataclasses.asdict(config.first_stage))
    recipe = Recipe.of(config.data, first_stage, config.seed)
    source = FolderPhotos(arguments.images) if arguments.images else TFDSPhotos(arguments.tfds)
    try:
        precompute(
            source,
            recipe,
            first_stage,
            out,
            process_index=arguments.process_index,
            process_count=arguments.process_count,
            records_per_shard=arguments.records_per_shard,
            batch_size=arguments.batch_size,
            num_threads=config.data.num_threads,
        )
    except OSError as error:
        raise InputError(
            f"cannot write {error.filename or out}: {error.strerror}; then run the same command again"
        ) from error


if __name__ == "__main__":
    run(main)
