"""Train a tiny autoencoder on photographs: the first stage of a flow that is to need no other weights.

    python -m fmboost_jax.train_autoencoder --config configs/autoencoder_demo.py --config.data.dir=PHOTOS --workdir RUN

Started again with the same words it goes on from its last checkpoint, and ends with the very bits it would have ended
with; SIGTERM saves and stops. At the end `RUN/autoencoder/` holds the averaged weights in float16, under diffusers'
names, with the latents' measured scale and shift.
"""

import argparse
import dataclasses
import json
import os
import signal
import sys
import threading
import time

import grain
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float, UInt8
from ml_collections import ConfigDict
from PIL import Image
from safetensors.numpy import save
from tqdm import tqdm

from fmboost_jax.bundle import new_folder
from fmboost_jax.configuration import changes, parse_arguments
from fmboost_jax.data.files import write_atomically
from fmboost_jax.data.images import UnusablePhoto, centre_square, load_photo, random_square
from fmboost_jax.data.sources import FolderPhotos
from fmboost_jax.errors import InputError, run
from fmboost_jax.interop.autoencoders import autoencoder_state_dict
from fmboost_jax.memory import keep_freed_memory
from fmboost_jax.metrics.images import gradient_energy, psnr, ssim
from fmboost_jax.models.autoencoder_tiny import LATENT_BOUND, AutoencoderTiny, AutoencoderTinyConfig
from fmboost_jax.models.parameters import count, merge, split
from fmboost_jax.pictures import grid, to_float, to_uint8
from fmboost_jax.training.autoencoder import ENLARGEMENTS, decaying_optimizer, initial_parameters, make_train_step
from fmboost_jax.training.checkpoints import Checkpoints
from fmboost_jax.training.logs import Logs
from fmboost_jax.training.monitor import FiniteWatch, Window

GRID_ROWS = 4
PRINCIPAL_BATCHES = 100  # that the patches' principal components are taken of


def main(argv: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        "fmboost_jax.train_autoencoder", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--workdir", required=True, help="folder of the run: checkpoints, metrics.jsonl, pictures")
    arguments, config = parse_arguments(parser, sys.argv[1:] if argv is None else argv)
    keep_freed_memory()
    train_autoencoder(config, arguments.workdir)


def train_autoencoder(config: ConfigDict, workdir: str) -> None:
    """Train to `config.train.steps`, from the last checkpoint in `workdir` where there is one, and write the result.

    Raises:
        InputError: photographs, checkpoint or config that do not fit, a loss that is not finite, a disk that is full.
    """
    stop_asked = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop_asked.set())
    if os.path.exists(os.path.join(workdir, "autoencoder")):
        raise InputError(f"{workdir}/autoencoder exists already: that run is finished; choose another --workdir")

    # ---------------------------------------------------------------------------------------------------- data
    architecture = AutoencoderTinyConfig(**config.autoencoder)
    multiple = architecture.downsampling * max(ENLARGEMENTS)
    if config.data.crop % multiple:
        raise InputError(f"data.crop is {config.data.crop}: enlarged latents need a multiple of {multiple}")
    photographs = read_photographs(config.data.dir, config.data.crop)
    held_out = centres(config.evaluate.dir or config.data.dir, config.evaluate.size)[: config.evaluate.images]
    iterator = iter(crop_batches(photographs, config))

    # --------------------------------------------------------------------------------------------------- state
    graph = split(nnx.eval_shape(lambda: AutoencoderTiny(architecture, rngs=nnx.Rngs(0))))[0]
    initial = initial_parameters(config, first_crops(photographs, config, PRINCIPAL_BATCHES))
    optimizer = decaying_optimizer(config)
    state = {
        "step": jnp.zeros((), jnp.int32),
        "parameters": initial,
        "ema": jax.tree.map(jnp.copy, initial),
        "optimizer": optimizer.init(initial),
    }
    checkpoints, saved_config = Checkpoints(workdir, keep=config.checkpoint.keep), json.loads(config.to_json())
    start = checkpoints.latest or 0
    if start:
        differences = changes(checkpoints.config(start), saved_config)
        if differences:
            raise InputError(
                f"the config has changed since checkpoint {workdir} step {start}: {', '.join(differences)}; set it "
                "back or choose another --workdir"
            )
        state = checkpoints.restore(start, jax.eval_shape(lambda: state), iterator)
    print(f"{len(photographs)} photographs, {len(held_out)} to measure, {count(initial):,} parameters, step {start}")

    # ---------------------------------------------------------------------------------------------------- loop
    train_step = jax.jit(make_train_step(config, graph, optimizer), donate_argnums=0)
    logs, watch = Logs(workdir, start), FiniteWatch(workdir, config.train.nan_patience)
    window = Window(config.train.batch_size)
    bar = tqdm(total=config.train.steps, initial=start, unit="step", dynamic_ncols=True)
    step = start
    try:
        # Evaluate, save, and only then take the next batch: a checkpoint holds the iterator as it stands at its step.
        while True:
            last = step >= config.train.steps
            if last or (config.evaluate.every and step > start and step % config.evaluate.every == 0):
                window.add(0.0, watch.settle())
                scores, picture = evaluate(merge(graph, state["ema"]), held_out)
                logs.scalars(step, {f"evaluate/{name}": value for name, value in scores.items()})
                logs.picture(step, "round_trip", picture)
                bar.write(f"step {step}: " + ", ".join(f"{name} {value:.4g}" for name, value in scores.items()))
                window.restart()
            stop = last or stop_asked.is_set()
            if step > start and (stop or step % config.checkpoint.every == 0):
                window.add(0.0, watch.settle())
                if watch.healthy or stop:
                    checkpoints.save(step, state, iterator, saved_config)
                window.restart()
            if stop:
                break
            waiting = time.perf_counter()
            batch = next(iterator)
            waited = time.perf_counter() - waiting
            state, metrics = train_step(state, batch["image"])
            step += 1
            window.add(waited, watch.add(step, metrics, {"record": batch["record"]}))
            bar.update()
            if step % config.train.log_every == 0:
                values = window.report(watch.settle())
                bar.set_postfix_str(f"loss {values.get('loss', float('nan')):.4f}")
                logs.scalars(step, values)
    finally:
        bar.close()
        logs.close()
        iterator.close()
        checkpoints.close()
    if last:
        write_autoencoder(os.path.join(workdir, "autoencoder"), merge(graph, state["ema"]), held_out)
        print(f"finished; {workdir}/autoencoder")
    else:
        print(f"SIGTERM: stopped, the same command goes on; step {step} of {config.train.steps}")


def read_photographs(folder: str | None, smallest: int) -> list[Image.Image]:
    """All photographs of a folder, decoded, but for those whose shorter side is below `smallest` pixels.

    Raises:
        InputError: no folder told, none there, or no photograph of that size in it.
    """
    if not folder:
        raise InputError("data.dir: the folder of photographs is missing; --config.data.dir=PHOTOS")
    photos, usable = FolderPhotos(folder), []
    for number in range(len(photos.names)):
        try:
            with photos.open(number) as file:
                photograph = load_photo(file)
        except (UnusablePhoto, OSError) as error:
            print(f"left out {photos.names[number]}: {error}")
            continue
        if min(photograph.size) >= smallest:
            usable.append(photograph)
    if not usable:
        raise InputError(f"{folder}: none of {len(photos.names)} photographs has {smallest}×{smallest} pixels")
    return usable


def centres(folder: str, size: int) -> Float[np.ndarray, "n size size 3"]:
    """The centred squares of a folder's photographs, shrunk to `size`, in [−1, 1]."""
    photographs = read_photographs(folder, size)
    squares = [
        photograph.resize((size, size), Image.Resampling.LANCZOS, centre_square(*photograph.size).box)
        for photograph in photographs
    ]
    return to_float(np.stack([np.asarray(square) for square in squares]))


def crop_batches(photographs: list[Image.Image], config: ConfigDict) -> grain.IterDataset:
    """An endless stream of batches: `image` (b, crop, crop, 3) uint8 and `record` (b,), the photographs' numbers.

    Every epoch takes each photograph once, in an order of its own, at a random square, half of them mirrored.
    """
    size, scale = config.data.crop, config.data.crop_scale

    def crop(number: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        photograph = photographs[number]
        square = random_square(*photograph.size, size, scale, str(rng.integers(2**63)))
        pixels = np.asarray(photograph.resize((size, size), Image.Resampling.LANCZOS, square.box))
        return {"image": pixels[:, ::-1] if rng.integers(2) else pixels, "record": np.uint32(number)}

    stream = grain.MapDataset.range(len(photographs)).seed(config.seed).shuffle().repeat().random_map(crop)
    return stream.batch(config.train.batch_size).to_iter_dataset(
        grain.ReadOptions(num_threads=config.data.num_threads, prefetch_buffer_size=config.data.prefetch)
    )


def first_crops(photographs: list[Image.Image], config: ConfigDict, batches: int) -> UInt8[np.ndarray, "n h w 3"]:
    """The crops of the stream's first batches."""
    iterator = iter(crop_batches(photographs, config))
    images = np.concatenate([next(iterator)["image"] for _ in range(batches)])
    iterator.close()
    return images


def evaluate(autoencoder: AutoencoderTiny, images: Float[np.ndarray, "n h w 3"]):
    """PSNR, SSIM and sharpness (gradient energy over the original's) of the round trip, and a picture of some."""
    decoded, latents = round_trip(autoencoder, images)
    scores = {
        "psnr": float(np.mean(psnr(decoded, images))),
        "ssim": float(np.mean(ssim(decoded, images))),
        "sharpness": float(np.mean(gradient_energy(decoded) / gradient_energy(images))),
        "latent_mean": float(np.mean(latents)),
        "latent_deviation": float(np.std(latents)),
    }
    rows = zip(to_uint8(images[:GRID_ROWS]), to_uint8(decoded[:GRID_ROWS]), strict=True)
    return scores, grid([list(row) for row in rows], ["original", "round trip"])


def round_trip(autoencoder: AutoencoderTiny, images: Float[np.ndarray, "n h w 3"]):
    """Decoded images, clipped to [−1, 1], and unscaled latents, one image at a time."""
    graph, parameters = split(autoencoder)
    both = [_round_trip(graph, parameters, image[None]) for image in images]
    return tuple(np.concatenate(arrays) for arrays in zip(*both, strict=True))


@jax.jit(static_argnums=0)
def _round_trip(graph, parameters, image):
    autoencoder = merge(graph, parameters)
    latent = autoencoder.encode(image)[0]
    return jnp.clip(autoencoder.decode(latent), -1, 1), latent


def write_autoencoder(folder: str, autoencoder: AutoencoderTiny, images: Float[np.ndarray, "n h w 3"]) -> None:
    """A diffusers folder: float16 weights, and a config with the scale and shift that these images' latents need.

    Raises:
        InputError: the folder exists.
    """
    _, latents = round_trip(autoencoder, images)
    architecture = dataclasses.asdict(autoencoder.config)
    levels, channels = len(architecture["encoder_blocks"]), autoencoder.config.patch_channels
    config = {
        "_class_name": "AutoencoderTiny",
        "in_channels": channels,
        "out_channels": channels,
        "patch_size": architecture["patch_size"],
        "latent_channels": architecture["latent_channels"],
        "encoder_block_out_channels": [architecture["width"]] * levels,
        "decoder_block_out_channels": [architecture["width"]] * levels,
        "num_encoder_blocks": architecture["encoder_blocks"],
        "num_decoder_blocks": architecture["decoder_blocks"],
        "act_fn": "relu",
        "upsampling_scaling_factor": 2,
        "latent_magnitude": LATENT_BOUND,
        "latent_shift": 0.5,
        "scaling_factor": round(float(1 / np.std(latents)), 4),
        "shift_factor": round(float(np.mean(latents)), 4),
    }
    tensors = autoencoder_state_dict(autoencoder, "diffusers")
    with new_folder(folder) as partial:
        half = {name: np.ascontiguousarray(tensor, np.float16) for name, tensor in tensors.items()}
        write_atomically(partial / "diffusion_pytorch_model.safetensors", save(half))
        write_atomically(partial / "config.json", json.dumps(config, indent=2).encode())


if __name__ == "__main__":
    run(main)
