"""Every benchmark that this machine can run, each against its peers, as one page of tables.

    python -m bench > bench/results.md                  # all; an hour on two cores
    python -m bench sampling decoding --repeats 3       # some
    python -m bench sampling --width 64                 # a narrower UNet, sooner

Seconds are medians of repeats that alternate between ours and a peer, each in a process of its own; "first call" is
building, compiling and one run, "peak" the process's largest resident memory. A GPU is used where there is one; TPUs
are the predictions that `bench.tpu` keeps. Some parts have commands with more options: `python -m bench.sample`
(the part "large"), `bench.processes`, `bench.accumulation`, `bench.saving` (training beside a save), `bench.data`,
`bench.decode`, `bench.convolution`, `bench.precision`, `bench.headline` (prompt to 1024² pixels), `bench.accelerator`
(one GPU or TPU in ten minutes), `bench.objectives`.
"""

import argparse
import datetime
import importlib.metadata
import os
import pathlib
import platform
import sys
import tempfile

from bench import processes, sample, storage, tpu
from bench.alternation import alternate, table
from bench.decoders import decoding, write_decoder
from bench.growth import growth
from bench.networks import Work, sampling, training, write_weights
from fmboost_jax.errors import run

PARTS = (
    *("sampling", "training", "decoding", "large", "growth"),
    *("data", "processes", "checkpoints", "precompute", "tpu"),
)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser("bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"which: {', '.join(PARTS)} (all)")
    parser.add_argument("--width", type=int, default=128, help="the UNet's model_channels (128)")
    parser.add_argument("--latent", type=int, default=32, help="height and width of the latents (32)")
    parser.add_argument("--batch", type=int, default=2, help="latents at once (2)")
    parser.add_argument("--steps", type=int, default=4, help="Euler steps of sampling (4)")
    parser.add_argument("--repeats", type=int, default=5, help="of each implementation, the first call not counted (5)")
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.parts) - set(PARTS))
    if unknown:
        parser.error(f"no benchmark {', '.join(unknown)}; there are {', '.join(PARTS)}")
    print(heading(), end="\n\n", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for part in arguments.parts or PARTS:
            print(f"bench: {part}", file=sys.stderr, flush=True)
            for text in tables(part, pathlib.Path(folder), arguments):
                print(text, end="\n\n", flush=True)


def tables(part: str, folder: pathlib.Path, arguments: argparse.Namespace):
    """The tables of one part."""
    repeats, size = arguments.repeats, f"{arguments.batch} × {arguments.latent}×{arguments.latent}×4"
    unet = {"model_channels": arguments.width}
    work = Work(folder / "unet.safetensors", unet, arguments.batch, arguments.latent, arguments.steps)
    if part in ("sampling", "training", "growth", "checkpoints") and not work.weights.exists():
        write_weights(work.weights, unet)
    if part in ("data", "checkpoints") and not (folder / "records").exists():
        storage.write_records(folder / "records")
    if part in ("decoding", "precompute") and not (folder / "vae").exists():
        write_decoder(folder / "vae")
    match part:
        case "sampling":
            title = f"Sampling: {arguments.steps} Euler steps of {size}"
            yield table(title, alternate(sampling(work), repeats=repeats))
        case "training":
            yield table(f"Training: one step of {size}", alternate(training(work), repeats=repeats))
        case "decoding":
            title = f"Decoding: {arguments.batch} × {8 * arguments.latent}²"
            yield table(title, alternate(decoding(folder / "vae", arguments.batch, arguments.latent), repeats=repeats))
        case "large":
            yield from sample.tables(latent=128, batch=1, steps=[4], width=arguments.width, repeats=min(3, repeats))
        case "growth":
            yield growth(work.weights, unet, repeats=min(3, repeats))
        case "data":
            title = f"Data: {storage.RECORDS} records of two 128×128×4 latents in batches of {storage.BATCH}"
            yield table(title, alternate(storage.reading(folder / "records"), repeats=repeats))
        case "processes":
            title = "Training in several processes, the wait for data included"
            yield f"### {title}\n\n{processes.table(processes.rows([1, 2, 4]))}"
        case "tpu":
            yield f"### Training on TPU slices, as their compiler predicts it\n\n{tpu.table(tpu.rows())}"
        case "checkpoints":
            title = f"parameters, average and moments, {4 * work.weights.stat().st_size / 1e9:.1f} GB"
            saved = alternate(storage.saving(work.weights, folder / "records"), repeats=min(3, repeats))
            yield table(f"Saving {title}", saved)
            restored = storage.restoring(work.weights, folder / "records", repeats=min(3, repeats))
            yield table(f"Restoring {title}, in a new process", restored)
        case "precompute":
            photos = storage.write_photos(folder / "photos")
            title = f"Precompute: pairs of {storage.CROP_SIZE}², {storage.CROPS} of each photograph of the demo"
            yield table(title, alternate(storage.precomputing(photos, folder / "vae"), repeats=min(3, repeats)))


def heading() -> str:
    """Machine, versions, date and command."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("jax", "flax", "torch", "diffusers"))
    words = " ".join(["python -m bench", *sys.argv[1:]])
    return (
        f"# Speed and memory against PyTorch\n\n`{words}`, {datetime.date.today()}: "
        f"{len(os.sched_getaffinity(0))} cores of {_processor()}, {platform.system()}; {versions}."
    )


def _processor() -> str:
    """As Linux names it."""
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    run(main)
