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

import jax
from PIL import Image

import fmboost_jax
from fmboost_jax.boosting.booster import Booster
from fmboost_jax.configuration import parse_arguments
from fmboost_jax.data.sources import FolderPhotos, TFDSPhotos
from fmboost_jax.errors import InputError, run
from fmboost_jax.evaluation import checksums, report
from fmboost_jax.evaluation.collection import Collection, check_pairs, read_captions
from fmboost_jax.evaluation.degradations import FILTERS
from fmboost_jax.evaluation.measures import Measures
from fmboost_jax.evaluation.parts import Parts, refuse_other_settings
from fmboost_jax.evaluation.protocol import Protocol
from fmboost_jax.evaluation.session import Session
from fmboost_jax.evaluation.subjects import (
    Folder,
    Prompts,
    SmallPhotographs,
    Subject,
    boosters_enlarge,
    filter_enlarges,
)
from fmboost_jax.files import read_json
from fmboost_jax.parallel.mesh import make_mesh

DEFAULT_CONFIG = "protocols/folders.py"
NAMED_AT_MOST = 20


def main(argv: list[str] | None = None) -> None:
    """The command."""
    argv = sys.argv[1:] if argv is None else argv
    arguments, protocol = parse_arguments(_parser(), argv, Protocol, default=DEFAULT_CONFIG, flag_overrides=_overrides)
    if not 0 <= arguments.process_index < arguments.process_count:
        raise InputError(
            f"--process-index {arguments.process_index} is outside 0 to {arguments.process_count - 1} "
            f"(--process-count {arguments.process_count})"
        )
    try:
        evaluate(arguments, protocol)
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
    add("--out", required=True, metavar="DIR", help="where the results are to lie")
    add("--metrics", metavar="A,B,…", help="instead of the protocol's")
    add("--features", metavar="NAME", help="network of the Fréchet distances, instead of the protocol's")
    add("--weights", default="", metavar="FILE", help="the feature network's weights, where they lie elsewhere")
    add("--captions", metavar="FILE", help="JSON of {name: caption}, or COCO's captions_*.json")
    add("--base", metavar="FOLDER_OR_ID", help="diffusers pipeline that makes the latents, for source 'prompts'")
    add("--first-stage", metavar="PATH", help="the booster's autoencoder, where it has moved")
    add("--cache", metavar="DIR", help="where statistics of reference sets are kept (~/.cache/fmboost_jax/statistics)")
    add("--process-index", type=int, default=0, help="number of this process, from 0")
    add("--process-count", type=int, default=1, help="processes that share the work")
    return parser


def _overrides(arguments: argparse.Namespace) -> list[str]:
    """The overrides of the protocol that flags stand for."""
    words = []
    if arguments.metrics:
        words.append(f"--config.metrics={tuple(filter(None, arguments.metrics.split(',')))}")
    if arguments.features:
        words.append(f"--config.features={arguments.features}")
    return words


def evaluate(arguments: argparse.Namespace, protocol: Protocol) -> dict | None:
    """Do this process's share, and write the results where no other has any left.

    Returns:
        The results, as in results.json; None while other processes are at work.

    Raises:
        InputError: see the modules of `fmboost_jax.evaluation`.
    """
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # what is too large by far is skipped
    out = pathlib.Path(arguments.out)
    images = Collection(FolderPhotos(arguments.images) if arguments.images else TFDSPhotos(arguments.tfds), protocol)
    subject, reference, captions, made_by = _subject(arguments, protocol, images)

    # ------------------------------------------------------------------------------------------------- settings
    measures = Measures(protocol, make_mesh({"data": -1, "fsdp": 1, "spatial": 1}), arguments.weights)
    checksum = images.checksum()
    reference_checksum = checksum if reference is images else reference.checksum() if reference else ""
    settings = {
        "protocol": {
            **{name: value for name, value in dataclasses.asdict(protocol).items() if name != "num_threads"},
            "lpips": protocol.lpips.path,
            "clip": protocol.clip.path,
        },
        "images": checksum,
        "reference": reference_checksum,
        "made_by": made_by,
        "captions": checksums.of_facts(**captions) if captions else "",
        "feature_weights": measures.feature_weights,
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
    cache = pathlib.Path(arguments.cache or os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    session = Session(
        protocol,
        measures,
        Parts(out, settings),
        cache if arguments.cache else cache / "fmboost_jax" / "statistics",
        process_index=arguments.process_index,
        process_count=arguments.process_count,
    )
    compared = reference if protocol.feature_sets else None
    if compared:
        session.prepare_reference(compared, reference_checksum)
    session.evaluate(subject, captions)

    # -------------------------------------------------------------------------------------------------- results
    left = session.unfinished(subject, compared, reference_checksum)
    if left:
        print(f"{left} batches are left to other processes; the last one to finish writes the results")
        return None
    numbers, rows = session.results(subject, compared, reference_checksum)
    results = {
        "protocol": protocol.name,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device": f"{jax.device_count()} × {jax.devices()[0].device_kind}",
        "versions": {"fmboost_jax": fmboost_jax.__version__, "jax": jax.__version__},
        **numbers,
        "settings": settings,
    }
    report.write(out, results, rows)
    session.remove_parts()
    _print(out, results)
    return results


def _subject(
    arguments: argparse.Namespace, protocol: Protocol, images: Collection
) -> tuple[Subject, Collection | None, dict[str, str], list[str]]:
    """What is evaluated, what it is compared with, captions by name, and what makes the images."""
    captions = {}
    if protocol.needs_captions:
        if not arguments.captions:
            raise InputError("clip and source 'prompts' need --captions FILE: JSON of {name: caption}, or COCO's")
        captions = read_captions(arguments.captions, images.names)
    if protocol.source == "prompts" and not (arguments.booster and arguments.base):
        raise InputError("source 'prompts' needs --base, a diffusers pipeline, and --booster")
    if arguments.booster:
        options = {"first_stage": arguments.first_stage, "devices": jax.devices()}
        boosters = [Booster.load(path, **options) for path in arguments.booster]
        made_by = [checksums.of_parameters(booster.parameters) for booster in boosters]
        if protocol.source == "prompts":
            from fmboost_jax.boosting.diffusers import check_pipeline, load_pipeline

            pipe = load_pipeline(arguments.base)
            check_pipeline(pipe, boosters[0])
            pipe.set_progress_bar_config(disable=True)
            return Prompts(captions, protocol, boosters, pipe), images, captions, [arguments.base, *made_by]
        enlarge = boosters_enlarge(boosters, protocol)
        return SmallPhotographs(images, protocol, enlarge), images, captions, made_by
    if arguments.resize:
        enlarge = filter_enlarges(arguments.resize, protocol)
        return SmallPhotographs(images, protocol, enlarge), images, captions, [arguments.resize]
    if not arguments.reference:
        if protocol.paired or protocol.feature_sets:
            raise InputError(
                f"{', '.join(protocol.metrics)}: there is nothing to compare the images with; give --reference FOLDER, "
                "or --booster DIR to boost them from small ones"
            )
        return Folder(images), None, captions, []
    reference = Collection(FolderPhotos(arguments.reference), protocol)
    if protocol.paired:
        check_pairs(images, reference, protocol)
    return Folder(images, reference if protocol.paired else None), reference, captions, []


def _print(out: pathlib.Path, results: dict) -> None:
    print(f"\n{results['protocol']}: {results['images']} images on {results['device']}\n\n{report.table(results)}\n")
    for warning in results["warnings"]:
        print(f"warning: {warning}", file=sys.stderr)
    if results["skipped"]:
        print(f"skipped {len(results['skipped'])}:", file=sys.stderr)
    for name, reason in results["skipped"][:NAMED_AT_MOST]:
        print(f"  {name}: {reason}", file=sys.stderr)
    print(f"results in {out}: {report.RESULTS}, {report.TABLE}, {report.IMAGES}")


if __name__ == "__main__":
    run(main)
