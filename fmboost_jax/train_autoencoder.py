"""Train a tiny autoencoder on photographs: the first stage of a flow that is to need no other weights.

    python -m fmboost_jax.train_autoencoder --config configs/autoencoder_demo.py --config.data.dir=PHOTOS --workdir RUN

Started again with the same words it goes on from its last checkpoint, and ends with the very bits it would have ended
with; SIGTERM saves and stops. At the end `RUN/autoencoder/` holds the averaged weights in float16, under diffusers'
names, with the latents' measured scale and shift.
"""

import argparse
import os
import signal
import sys
import threading
import time

import jax
import jax.numpy as jnp
from flax import nnx
from tqdm import tqdm

from fmboost_jax.configuration import changes, from_mapping, parse_arguments, to_mapping
from fmboost_jax.data.crops import centres, crop_batches, first_crops, read_photographs
from fmboost_jax.errors import InputError, run
from fmboost_jax.models.autoencoder_tiny import AutoencoderTiny
from fmboost_jax.models.parameters import count, merge, split
from fmboost_jax.runtime.memory import keep_freed_memory
from fmboost_jax.training.autoencoder import (
    ENLARGEMENTS,
    decaying_optimizer,
    evaluate,
    initial_parameters,
    make_train_step,
    write_autoencoder,
)
from fmboost_jax.training.checkpoints import Checkpoints
from fmboost_jax.training.config import AutoencoderTrainingConfig
from fmboost_jax.training.logs import Logs
from fmboost_jax.training.monitor import FiniteWatch, Window

PRINCIPAL_BATCHES = 100  # that the patches' principal components are taken of


def main(argv: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        "fmboost_jax.train_autoencoder", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--workdir", required=True, help="folder of the run: checkpoints, metrics.jsonl, pictures")
    arguments, config = parse_arguments(parser, sys.argv[1:] if argv is None else argv, AutoencoderTrainingConfig)
    keep_freed_memory()
    train_autoencoder(config, arguments.workdir)


def train_autoencoder(config: AutoencoderTrainingConfig, workdir: str) -> None:
    """Train to `config.train.steps`, from the last checkpoint in `workdir` where there is one, and write the result.

    Raises:
        InputError: photographs, checkpoint or config that do not fit, a loss that is not finite, a disk that is full.
    """
    stop_asked = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop_asked.set())
    if os.path.exists(os.path.join(workdir, "autoencoder")):
        raise InputError(f"{workdir}/autoencoder exists already: that run is finished; choose another --workdir")

    # ---------------------------------------------------------------------------------------------------- data
    architecture = config.autoencoder
    multiple = architecture.downsampling * max(ENLARGEMENTS)
    if config.data.crop % multiple:
        raise InputError(f"data.crop is {config.data.crop}: enlarged latents need a multiple of {multiple}")
    photographs = read_photographs(config.data.dir, config.data.crop)
    held_out = centres(config.evaluate.dir or config.data.dir, config.evaluate.size)[: config.evaluate.images]
    stream = {"seed": config.seed, "batch_size": config.train.batch_size}
    iterator = iter(crop_batches(photographs, config.data, **stream))

    # --------------------------------------------------------------------------------------------------- state
    graph = split(nnx.eval_shape(lambda: AutoencoderTiny(architecture, rngs=nnx.Rngs(0))))[0]
    initial = initial_parameters(config, first_crops(photographs, config.data, batches=PRINCIPAL_BATCHES, **stream))
    optimizer = decaying_optimizer(config)
    state = {
        "step": jnp.zeros((), jnp.int32),
        "parameters": initial,
        "ema": jax.tree.map(jnp.copy, initial),
        "optimizer": optimizer.init(initial),
    }
    checkpoints, saved_config = Checkpoints(workdir, keep=config.checkpoint.keep), to_mapping(config)
    start = checkpoints.latest or 0
    if start:
        saved = from_mapping(AutoencoderTrainingConfig, checkpoints.config(start), f"config of checkpoint {start}")
        differences = changes(to_mapping(saved), saved_config)
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


if __name__ == "__main__":
    run(main)
