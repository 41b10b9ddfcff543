"""Train a tiny autoencoder on photographs, as the first stage of a flow that needs no other weights.

    python -m fmboost_jax.train_autoencoder --config configs/autoencoder_demo.py --config.data.dir=PHOTOS --workdir RUN

The same command, started again, continues from the last checkpoint and ends with the same bits as an uninterrupted run;
SIGTERM saves and stops. At the end `RUN/autoencoder/` holds the averaged weights in float16, under diffusers' names,
with the measured scale and shift of the latents.
"""

import argparse
import os
import sys

import jax

from fmboost_jax.boosting.booster import Booster
from fmboost_jax.boosting.teacher import frozen_flow
from fmboost_jax.configuration import changes, parse_arguments, to_mapping
from fmboost_jax.data.crops import centres, crop_batches, first_crops, read_photographs
from fmboost_jax.errors import InputError, run
from fmboost_jax.models.autoencoder_tiny import AutoencoderTiny
from fmboost_jax.models.parameters import abstract, count, merge, split
from fmboost_jax.parallel import distributed
from fmboost_jax.runtime.lock import FolderLock
from fmboost_jax.runtime.memory import keep_freed_memory
from fmboost_jax.runtime.profile import Profile
from fmboost_jax.training import loop
from fmboost_jax.training.autoencoder import (
    ENLARGEMENTS,
    decaying_optimizer,
    evaluate,
    initial_parameters,
    latent_scale,
    load_initial,
    make_train_step,
    write_autoencoder,
)
from fmboost_jax.training.checkpoints import Checkpoints
from fmboost_jax.training.config import AutoencoderTrainingConfig, read_saved
from fmboost_jax.training.state import TrainState
from fmboost_jax.training.tracker import check_tracker

PRINCIPAL_BATCHES = 100  # images for the principal components of patches


def main(argv: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        "fmboost_jax.train_autoencoder", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--workdir", required=True, help="folder of the run: checkpoints, metrics.jsonl, sample grids")
    arguments, config = parse_arguments(parser, sys.argv[1:] if argv is None else argv, AutoencoderTrainingConfig)
    check_tracker(config.train.tracker)
    keep_freed_memory()
    train_autoencoder(config, arguments.workdir)


def train_autoencoder(config: AutoencoderTrainingConfig, workdir: str) -> None:
    """Train to `config.train.steps`, from the last checkpoint in `workdir` where there is one, and write the result.

    Raises:
        InputError: another training in `workdir`; photographs, checkpoint or config that do not fit, a loss that is
            not finite, a disk that is full.
    """
    if os.path.exists(os.path.join(workdir, "autoencoder")):
        raise InputError(f"{workdir}/autoencoder exists already: that run is finished; choose another --workdir")
    with FolderLock(workdir) as lock:
        _train(config, workdir, lock)


def _train(config: AutoencoderTrainingConfig, workdir: str, lock: FolderLock) -> None:
    terminated = distributed.listen_for_sigterm()

    # ---------------------------------------------------------------------------------------------------- data
    architecture = config.autoencoder
    multiple = architecture.downsampling * max(ENLARGEMENTS)
    if config.data.crop % multiple:
        raise InputError(f"data.crop is {config.data.crop}: enlarged latents need a multiple of {multiple}")
    photographs = read_photographs(config.data.dir, config.data.crop)
    held_out = centres(config.evaluate.dir or config.data.dir, config.evaluate.size)[: config.evaluate.images]
    stream = {"seed": config.seed, "batch_size": config.train.batch_size}
    iterator = iter(crop_batches(photographs, config.data, **stream).map(_to_device))

    # --------------------------------------------------------------------------------------------------- state
    graph = split(abstract(AutoencoderTiny, architecture))[0]
    known = None
    if config.train.init_from:
        initial, known = load_initial(config)
    else:
        initial = initial_parameters(config, first_crops(photographs, config.data, batches=PRINCIPAL_BATCHES, **stream))
    flows = [frozen_flow(Booster.load(name), initial) for name in config.train.boosters]
    for name, flow in zip(config.train.boosters, flows, strict=True):
        if config.data.crop % flow.factor:
            raise InputError(f"data.crop is {config.data.crop}: booster {name} needs a multiple of {flow.factor}")
    optimizer = decaying_optimizer(config)
    state = TrainState.create(initial, optimizer)
    checkpoints, saved_config = Checkpoints(workdir, keep=config.checkpoint.keep, lock=lock), to_mapping(config)
    start = checkpoints.latest or 0
    if start:
        saved = read_saved(AutoencoderTrainingConfig, checkpoints.config(start), f"config of checkpoint {start}")
        differences = changes(to_mapping(saved), saved_config)
        if differences:
            raise InputError(
                f"the config has changed since checkpoint {workdir} step {start}: {', '.join(differences)}; set it "
                "back or choose another --workdir"
            )
        state = checkpoints.restore(start, jax.eval_shape(lambda: state), iterator)
    print(f"{len(photographs)} photographs, {len(held_out)} to measure, {count(initial):,} parameters, step {start}")

    # ---------------------------------------------------------------------------------------------------- loop
    train_step = jax.jit(make_train_step(config, graph, optimizer, flows), donate_argnums=0)
    frozen = [flow.parameters for flow in flows]
    state, finished = loop.run(
        state,
        iterator,
        lambda state, pixels: train_step(state, pixels, frozen),
        workdir=workdir,
        config=config.train,
        checkpoints=checkpoints,
        checkpoint_every=config.checkpoint.every,
        saved_config=saved_config,
        start=start,
        evaluation=loop.Evaluation(
            lambda ema: evaluate(merge(graph, ema), held_out), config.evaluate.every, "round_trip", at_end=True
        ),
        profile=Profile(workdir, ()),
        terminated=terminated,
    )
    if finished:
        trained = merge(graph, state.ema)
        if known and config.train.decoder_only:
            scale = known.scaling_factor, known.shift_factor
        else:
            scale = latent_scale(trained, held_out)
        write_autoencoder(os.path.join(workdir, "autoencoder"), trained, scale)
        print(f"finished; {workdir}/autoencoder")
    else:
        print(f"stopped by SIGTERM; the same command resumes; step {int(state.step)} of {config.train.steps}")


def _to_device(batch):
    return jax.device_put(batch["image"]), {"record": batch["record"]}


if __name__ == "__main__":
    run(main)
