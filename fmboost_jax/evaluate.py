"""Evaluate images: PSNR, SSIM, LPIPS, SSIMULACRA 2, CLIP score, CLIP-IQA, FID, patch FID, and seconds per image.

    python -m fmboost_jax.evaluate --images BOOSTED --reference ORIGINALS --out RESULTS
    python -m fmboost_jax.evaluate --images A --reference B --metrics fid --features efficientnet-lite0 --out RESULTS
    python -m fmboost_jax.evaluate --config configs/protocols/sr.py:jpeg --images PHOTOS --booster BUNDLE --out RESULTS
    python -m fmboost_jax.evaluate --config configs/protocols/sr.py --tfds div2k:validation --resize bicubic --out R
    python -m fmboost_jax.evaluate --config configs/protocols/coco5k.py --images val2017 \
        --captions captions_val2017.json --base SD_FOLDER_OR_ID --booster BUNDLE --out RESULTS

A protocol (configs/protocols/) has the number of images, the degradation and the metrics. RESULTS gets results.json,
results.csv and images.csv. An interrupted command continues when it is started again. Statistics of reference sets are
cached. docs/evaluation.md explains which results are comparable.
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
from fmboost_jax.boosting.diffusers import BACKEND_HELP
from fmboost_jax.configuration import add_share_options, parse_arguments
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
from fmboost_jax.files import local_path, read_json, user_cache
from fmboost_jax.parallel.distributed import check_share
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
            base_backend=arguments.base_backend,
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
    images.add_argument(
        "--images", metavar="FOLDER", help="images to evaluate; the originals with --booster or --resize"
    )
    images.add_argument(
        "--tfds", metavar="NAME:SPLIT[:DATA_DIR]", help="images of a TFDS dataset (needs the extra [tfds])"
    )
    against = parser.add_mutually_exclusive_group()
    against.add_argument("--reference", metavar="FOLDER", help="images to compare with")
    against.add_argument(
        "--booster",
        nargs="+",
        metavar="DIR",
        help="bundle or run that enlarges the low-res images; several are a cascade",
    )
    against.add_argument(
        "--resize", choices=tuple(FILTERS), help="enlarge the low-res images by a filter, as a baseline"
    )
    add(
        "--low-res",
        metavar="FOLDER",
        help="low-res images of the same names (default: the degraded originals)",
    )
    add("--out", required=True, metavar="DIR", help="folder of the results")
    add("--metrics", metavar="A,B,…", help="metrics (default: those of the protocol)")
    add("--features", metavar="NAME", help="network of the Fréchet distances (default: that of the protocol)")
    add(
        "--weights",
        default="",
        metavar="FILE",
        help="weights of the feature network (default: PyTorch's download folder)",
    )
    add("--captions", metavar="FILE", help="JSON of {name: caption}, or COCO's captions_*.json")
    add("--base", metavar="FOLDER_OR_ID", help="diffusers pipeline of the base model, for source 'prompts'")
    add("--base-backend", choices=("auto", "jax", "torch"), default="auto", help=BACKEND_HELP)
    add("--first-stage", metavar="PATH", help="the boosters' autoencoder (default: the one that they name)")
    add("--cache", metavar="DIR", help="cache of reference statistics (default: ~/.cache/fmboost_jax/statistics)")
    add_share_options(parser)
    return parser


def _overrides(arguments: argparse.Namespace) -> list[str]:
    """Return the overrides of the protocol that flags stand for."""
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
    base_backend: str = "auto",
    first_stage: str | None = None,
    weights: str = "",
    cache: str | os.PathLike | None = None,
    process_index: int = 0,
    process_count: int = 1,
) -> dict | None:
    """Evaluate this process's batches, and write the results when all batches are finished.

    Args:
        protocol: protocol of the evaluation.
        photos: images to evaluate; the originals if `boosters` or `resize` is given.
        out: folder of the results.
        reference: images to compare with, without `boosters` and `resize`.
        low_res: low-res images of the same names. Default: the degraded originals.
        boosters: bundles or runs that enlarge the low-res images, one after the other.
        resize: filter that enlarges them instead.
        captions: file of captions, for text metrics and for source "prompts".
        base: diffusers pipeline of the base model, for source "prompts".
        base_backend: its backend: "jax", "torch", or "auto": JAX, or PyTorch for a pipeline that JAX cannot run.
        first_stage: path of the boosters' autoencoder. Default: the one that they name.
        weights: file of the feature network's weights. Default: PyTorch's download folder.
        cache: folder of the reference sets' statistics. Default: `~/.cache/fmboost_jax/statistics`.
        process_index: number of this process, from 0.
        process_count: processes that share the work.

    Returns:
        The results, as in results.json; None if other processes have unfinished batches.

    Raises:
        InputError: see the modules of `fmboost_jax.evaluation`.
    """
    check_share(process_index, process_count)
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # images that are far too large are skipped
    out, images = pathlib.Path(local_path(out, "out")), ImageSet(photos, protocol)
    texts = _read_captions(protocol, captions, images)
    reference_set = images
    if protocol.source == "prompts":
        source, made_by = _prompts(protocol, texts, base, base_backend, boosters, first_stage)
    elif boosters or resize:
        source, made_by = _enlarged(protocol, images, low_res, boosters, resize, first_stage)
    elif low_res is not None:
        raise InputError("low-res images need boosters or a filter (resize) to enlarge them")
    else:
        source, reference_set = _folder(protocol, images, reference)
        made_by = []

    # ------------------------------------------------------------------------------------------------- settings
    metrics = Metrics(protocol, make_mesh({"data": -1, "fsdp": 1, "spatial": 1}), weights)
    checksum = images.checksum()
    reference_checksum = ""
    if reference_set is not None:
        reference_checksum = checksum if reference_set is images else reference_set.checksum()
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
        print(f"{out / report.RESULTS} exists already\n\n{report.table(results)}")
        return results

    # ----------------------------------------------------------------------------------------------------- work
    if protocol.batch_size % jax.device_count():
        idle = f"batch_size {protocol.batch_size} leaves some of {jax.device_count()} devices idle"
        print(f"{idle}; choose a multiple of their number", file=sys.stderr)
    evaluator = Evaluator(
        protocol,
        metrics,
        PartialResults(out, settings),
        pathlib.Path(cache or os.path.join(user_cache(), "statistics")),
        process_index=process_index,
        process_count=process_count,
    )
    compared = reference_set if protocol.feature_sets else None
    if compared:
        evaluator.prepare_reference(compared, reference_checksum)
    evaluator.evaluate(source, texts)

    # -------------------------------------------------------------------------------------------------- results
    left = evaluator.unfinished(source, compared, reference_checksum)
    if left:
        print(f"{left} batches of other processes are not finished; the last process to finish writes the results")
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
        raise InputError("clip and source 'prompts' need captions: a JSON file of {name: caption}, or COCO's")
    return read_captions(path, images.names)


def _load_boosters(paths: Sequence[str], first_stage: str | None) -> tuple[list[Booster], list[str]]:
    """Return the boosters, and checksums of their weights."""
    boosters = [Booster.load(path, first_stage=first_stage, devices=jax.devices()) for path in paths]
    return boosters, [checksums.of_parameters(booster.parameters) for booster in boosters]


def _prompts(
    protocol: Protocol,
    captions: dict[str, str],
    base: str | None,
    backend: str,
    paths: Sequence[str],
    first_stage: str | None,
) -> tuple[ImageSource, list[str]]:
    """Return the boosted images of captions, and the names and checksums of the models."""
    if not (paths and base):
        raise InputError("source 'prompts' needs a diffusers pipeline (base) and a booster")
    from fmboost_jax.generation.base import load_base

    boosters, made_by = _load_boosters(paths, first_stage)
    model = load_base(base, boosters, backend, devices=jax.devices(), quiet=True)
    return Prompts(captions, protocol, boosters, model), [base, model.backend, *made_by]


def _enlarged(
    protocol: Protocol,
    images: ImageSet,
    low_res: Photos | None,
    paths: Sequence[str],
    resize: str | None,
    first_stage: str | None,
) -> tuple[ImageSource, list[str]]:
    """Return enlarged low-res images, and the names and checksums of what enlarges them."""
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
    """Return the images of a folder, and the reference."""
    if photos is None:
        if protocol.paired or protocol.feature_sets:
            raise InputError(
                f"{', '.join(protocol.metrics)}: these metrics need a reference: give a folder of images to "
                "compare with, or a booster to evaluate with low-res images"
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
