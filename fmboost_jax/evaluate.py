"""Measure images: PSNR, SSIM, LPIPS, SSIMULACRA 2, CLIP score, FID and patch FID, with the seconds an image takes.

    python -m fmboost_jax.evaluate --images BOOSTED --reference ORIGINALS --out RESULTS
    python -m fmboost_jax.evaluate --images A --reference B --metrics fid --features efficientnet-lite0 --out RESULTS
    python -m fmboost_jax.evaluate --config configs/protocols/sr.py:jpeg --images PHOTOS --booster BUNDLE --out RESULTS
    python -m fmboost_jax.evaluate --config configs/protocols/sr.py --tfds div2k:validation --resize bicubic --out R
    python -m fmboost_jax.evaluate --config configs/protocols/coco5k.py --images val2017 \
        --captions captions_val2017.json --base SD_FOLDER_OR_ID --booster BUNDLE --out RESULTS

A protocol (configs/protocols/) says which images, how they become small and what is measured. RESULTS holds
results.json, results.csv and images.csv. Interrupted at any moment, the same command goes on where it was. Statistics
of reference sets are kept and used again while the images are the same. docs/evaluation.md: what compares with what.
"""

import argparse
import dataclasses
import datetime
import os
import pathlib
import sys
import warnings
from collections.abc import Sequence

import jax
from PIL import Image

import fmboost_jax
from fmboost_jax.boosting.booster import Booster
from fmboost_jax.configuration import parse_arguments
from fmboost_jax.data.sources import FolderPhotos, Photos, TFDSPhotos
from fmboost_jax.errors import InputError, run, some
from fmboost_jax.evaluation import checksums, report
from fmboost_jax.evaluation.degradations import FILTERS
from fmboost_jax.evaluation.evaluator import Evaluator
from fmboost_jax.evaluation.image_set import ImageSet, check_pairs, read_captions
from fmboost_jax.evaluation.image_sources import (
    Folder,
    ImageSource,
    Prompts,
    SmallPhotographs,
    boosters_enlarge,
    filter_enlarges,
)
from fmboost_jax.evaluation.metrics import Metrics
from fmboost_jax.evaluation.partial_results import PartialResults, refuse_other_settings
from fmboost_jax.evaluation.protocol import Protocol
from fmboost_jax.files import read_json
from fmboost_jax.parallel.distributed import add_share_arguments, check_share
from fmboost_jax.parallel.mesh import make_mesh

DEFAULT_CONFIG = "protocols/folders.py"


def main(argv: list[str] | None = None) -> None:
    """The command."""
    argv = sys.argv[1:] if argv is None else argv
    arguments, protocol = parse_arguments(_parser(), argv, Protocol, default=DEFAULT_CONFIG, flag_overrides=_overrides)
    try:
        evaluate(
            protocol,
            FolderPhotos(arguments.images) if arguments.images else TFDSPhotos(arguments.tfds),
            arguments.out,
            reference=FolderPhotos(arguments.reference) if arguments.reference else None,
            low_res=FolderPhotos(arguments.low_res) if arguments.low_res else None,
            boosters=arguments.booster or (),
            resize=arguments.resize,
            captions=arguments.captions,
            base=arguments.base,
            first_stage=arguments.first_stage,
            weights=arguments.weights,
            cache=arguments.cache,
            process_index=arguments.process_index,
            process_count=arguments.process_count,
        )
    except OSError as error:
        raise InputError(
            f"cannot write {error.filename or arguments.out}: {error.strerror}; then run the same command again"
        ) from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "fmboost_jax.evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    images = parser.add_mutually_exclusive_group(required=True)
    images.add_argument("--images", metavar="FOLDER", help="what is evaluated; the originals where they are boosted")
    images.add_argument("--tfds", metavar="NAME:SPLIT[:DATA_DIR]", help="the same from TFDS, needs the extra [tfds]")
    against = parser.add_mutually_exclusive_group()
    against.add_argument("--reference", metavar="FOLDER", help="what to compare the images with")
    against.add_argument(
        "--booster",
        nargs="+",
        metavar="DIR",
        help="bundle or run that boosts the images made small; several: a cascade",
    )
    against.add_argument(
        "--resize", choices=tuple(FILTERS), help="enlarge the images made small by a filter, as what is to be beaten"
    )
    add(
        "--low-res",
        metavar="FOLDER",
        help="low-res images of the same names, to enlarge instead of the images made small",
    )
    add("--out", required=True, metavar="DIR", help="folder that the results are written to")
    add("--metrics", metavar="A,B,…", help="instead of the protocol's")
    add("--features", metavar="NAME", help="network of the Fréchet distances, instead of the protocol's")
    add("--weights", default="", metavar="FILE", help="the feature network's weights, default: their usual place")
    add("--captions", metavar="FILE", help="JSON of {name: caption}, or COCO's captions_*.json")
    add("--base", metavar="FOLDER_OR_ID", help="diffusers pipeline that makes the latents, for source 'prompts'")
    add("--first-stage", metavar="PATH", help="the booster's autoencoder, where it has moved")
    add("--cache", metavar="DIR", help="where statistics of reference sets are kept (~/.cache/fmboost_jax/statistics)")
    add_share_arguments(parser)
    return parser


def _overrides(arguments: argparse.Namespace) -> list[str]:
    """The overrides of the protocol that flags stand for."""
    words = []
    if arguments.metrics:
        words.append(f"--config.metrics={tuple(filter(None, arguments.metrics.split(',')))}")
    if arguments.features:
        words.append(f"--config.features={arguments.features}")
    return words


def evaluate(
    protocol: Protocol,
    photos: Photos,
    out: str | os.PathLike,
    *,
    reference: Photos | None = None,
    low_res: Photos | None = None,
    boosters: Sequence[str] = (),
    resize: str | None = None,
    captions: str | None = None,
    base: str | None = None,
    first_stage: str | None = None,
    weights: str = "",
    cache: str | os.PathLike | None = None,
    process_index: int = 0,
    process_count: int = 1,
) -> dict | None:
    """Do this process's share, and write the results where no other process has any left.

    Args:
        protocol: what is measured, and how.
        photos: the images that are evaluated; the originals where they are enlarged from small ones.
        out: folder of the results.
        reference: images to compare with, where nothing is enlarged.
        low_res: small images of the same names; None: the originals made small by the protocol.
        boosters: bundles or runs that enlarge the small images, one after the other.
        resize: filter that enlarges them instead.
        captions: file of captions, for text metrics and for source "prompts".
        base: diffusers pipeline that makes the latents, for source "prompts".
        first_stage: path of the boosters' autoencoder, where it has moved.
        weights: file of the feature network's weights, where it is not in its usual place.
        cache: folder of the reference sets' statistics (default: `~/.cache/fmboost_jax/statistics`).
        process_index: number of this process, from 0.
        process_count: processes that share the work.

    Returns:
        The results, as in results.json; None while other processes are at work.

    Raises:
        InputError: see the modules of `fmboost_jax.evaluation`.
    """
    check_share(process_index, process_count)
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # images that are far too large are skipped
    out, images = pathlib.Path(out), ImageSet(photos, protocol)
    texts = _read_captions(protocol, captions, images)
    compared_with = images
    if protocol.source == "prompts":
        source, made_by = _prompts(protocol, texts, base, boosters, first_stage)
    elif boosters or resize:
        source, made_by = _enlarged(protocol, images, low_res, boosters, resize, first_stage)
    elif low_res is not None:
        raise InputError("small images need something that enlarges them: --booster or --resize")
    else:
        source, compared_with = _folder(protocol, images, reference)
        made_by = []

    # ------------------------------------------------------------------------------------------------- settings
    metrics = Metrics(protocol, make_mesh({"data": -1, "fsdp": 1, "spatial": 1}), weights)
    checksum = images.checksum()
    reference_checksum = ""
    if compared_with is not None:
        reference_checksum = checksum if compared_with is images else compared_with.checksum()
    settings = {
        "protocol": {
            **{name: value for name, value in dataclasses.asdict(protocol).items() if name != "num_threads"},
            "lpips": protocol.lpips.path,
            "clip": protocol.clip.path,
        },
        "images": checksum,
        "reference": reference_checksum,
        "made_by": made_by,
        "captions": checksums.of_facts(**texts) if texts else "",
        "feature_weights": metrics.feature_weights,
    }
    if (out / report.RESULTS).exists():
        results = read_json(out / report.RESULTS)
        refuse_other_settings(out, results["settings"], settings)
        print(f"{out / report.RESULTS} is there already\n\n{report.table(results)}")
        return results

    # ----------------------------------------------------------------------------------------------------- work
    if protocol.batch_size % jax.device_count():
        idle = f"batch_size {protocol.batch_size} leaves some of {jax.device_count()} devices idle"
        print(f"{idle}; a multiple of their number is faster: --config.batch_size", file=sys.stderr)
    caches = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    evaluator = Evaluator(
        protocol,
        metrics,
        PartialResults(out, settings),
        pathlib.Path(cache) if cache else caches / "fmboost_jax" / "statistics",
        process_index=process_index,
        process_count=process_count,
    )
    compared = compared_with if protocol.feature_sets else None
    if compared:
        evaluator.prepare_reference(compared, reference_checksum)
    evaluator.evaluate(source, texts)

    # -------------------------------------------------------------------------------------------------- results
    left = evaluator.unfinished(source, compared, reference_checksum)
    if left:
        print(f"{left} batches are left to other processes; the last one to finish writes the results")
        return None
    numbers, rows = evaluator.results(source, compared, reference_checksum)
    results = {
        "protocol": protocol.name,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device": f"{jax.device_count()} × {jax.devices()[0].device_kind}",
        "versions": {"fmboost_jax": fmboost_jax.__version__, "jax": jax.__version__},
        **numbers,
        "settings": settings,
    }
    report.write(out, results, rows)
    evaluator.remove_parts()
    _print(out, results)
    return results


def _read_captions(protocol: Protocol, path: str | None, images: ImageSet) -> dict[str, str]:
    if not protocol.needs_captions:
        return {}
    if not path:
        raise InputError("clip and source 'prompts' need --captions FILE: JSON of {name: caption}, or COCO's")
    return read_captions(path, images.names)


def _load_boosters(paths: Sequence[str], first_stage: str | None) -> tuple[list[Booster], list[str]]:
    """The boosters, and the checksums of their weights."""
    boosters = [Booster.load(path, first_stage=first_stage, devices=jax.devices()) for path in paths]
    return boosters, [checksums.of_parameters(booster.parameters) for booster in boosters]


def _prompts(
    protocol: Protocol, captions: dict[str, str], base: str | None, paths: Sequence[str], first_stage: str | None
) -> tuple[ImageSource, list[str]]:
    """What a base model makes of captions, boosted; and what it is made by."""
    if not (paths and base):
        raise InputError("source 'prompts' needs --base, a diffusers pipeline, and --booster")
    from fmboost_jax.boosting.diffusers import check_pipeline, load_pipeline

    boosters, made_by = _load_boosters(paths, first_stage)
    pipe = load_pipeline(base)
    check_pipeline(pipe, boosters[0])
    pipe.set_progress_bar_config(disable=True)
    return Prompts(captions, protocol, boosters, pipe), [base, *made_by]


def _enlarged(
    protocol: Protocol,
    images: ImageSet,
    low_res: Photos | None,
    paths: Sequence[str],
    resize: str | None,
    first_stage: str | None,
) -> tuple[ImageSource, list[str]]:
    """Small images, given or made by the protocol, enlarged by boosters or by a filter; and what they are made by."""
    if resize:
        enlarge, made_by = filter_enlarges(resize, protocol), [resize]
    else:
        boosters, made_by = _load_boosters(paths, first_stage)
        enlarge = boosters_enlarge(boosters, protocol)
    if low_res is None:
        return SmallPhotographs(images, protocol, enlarge), made_by
    small = ImageSet(low_res, dataclasses.replace(protocol, high_res=protocol.low_res, patches=()))
    check_pairs(small, images, protocol)
    return SmallPhotographs(images, protocol, enlarge, small), [*made_by, small.checksum()]


def _folder(protocol: Protocol, images: ImageSet, photos: Photos | None) -> tuple[ImageSource, ImageSet | None]:
    """Images as they are, and the reference."""
    if photos is None:
        if protocol.paired or protocol.feature_sets:
            raise InputError(
                f"{', '.join(protocol.metrics)}: there is nothing to compare the images with; give --reference FOLDER, "
                "or --booster DIR to boost them from small ones"
            )
        return Folder(images), None
    reference = ImageSet(photos, protocol)
    if protocol.paired:
        check_pairs(images, reference, protocol)
    return Folder(images, reference if protocol.paired else None), reference


def _print(out: pathlib.Path, results: dict) -> None:
    print(f"\n{results['protocol']}: {results['images']} images on {results['device']}\n\n{report.table(results)}\n")
    for warning in results["warnings"]:
        print(f"warning: {warning}", file=sys.stderr)
    if skipped := results["skipped"]:
        print(f"skipped {len(skipped)}: {some([': '.join(entry) for entry in skipped])}", file=sys.stderr)
    print(f"results in {out}: {report.RESULTS}, {report.TABLE}, {report.IMAGES}")


if __name__ == "__main__":
    run(main)
