"""Train an upsampler on latent pairs.

    python -m fmboost_jax.train --config configs/cfm1024.py --config.data.dir=DATA --workdir RUN

Started again with the same words it goes on from its last checkpoint, and ends with the very bits it would have ended
with; SIGTERM saves and stops, with exit code 143. On many hosts each runs this same command (docs/pods.md).
"""

import argparse
import dataclasses
import math
import os
import sys
import time

import jax
from jax.sharding import Mesh
from tqdm import tqdm

from fmboost_jax.configuration import changes, from_mapping, parse_arguments, to_mapping
from fmboost_jax.data.dataset import DatasetInfo
from fmboost_jax.data.pipeline import batches, spread_records
from fmboost_jax.errors import PREEMPTED, InputError, run
from fmboost_jax.interop.autoencoders import load_first_stage
from fmboost_jax.models.parameters import count
from fmboost_jax.parallel import distributed
from fmboost_jax.parallel.mesh import make_mesh
from fmboost_jax.parallel.sharding import place, process_share
from fmboost_jax.runtime.compilation import CompilationCache
from fmboost_jax.runtime.memory import keep_freed_memory
from fmboost_jax.runtime.profile import Profile
from fmboost_jax.tables import size, table
from fmboost_jax.training.checkpoints import Checkpoints, load_weights
from fmboost_jax.training.config import TrainingConfig
from fmboost_jax.training.evaluation import make_evaluate
from fmboost_jax.training.logs import Logs
from fmboost_jax.training.monitor import FiniteWatch, Window
from fmboost_jax.training.program import abstract_batch, abstract_state, lower_train_step
from fmboost_jax.training.step import init_state

# Sections of a config that may change while a run goes on: where it is computed, not what.
SURROUNDINGS = ("mesh.", "processes.", "profile.", "compilation_cache:")


def main(argv: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        "fmboost_jax.train", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--workdir", required=True, help="folder of the run: checkpoints, metrics.jsonl, pictures")
    parser.add_argument("--allow_config_change", action="store_true", help="go on although the config has changed")
    distributed.add_arguments(parser)
    arguments, config = parse_arguments(parser, sys.argv[1:] if argv is None else argv, TrainingConfig)
    keep_freed_memory()
    with distributed.processes(arguments, config.processes.timeout):
        finished = train(config, arguments.workdir, allow_config_change=arguments.allow_config_change)
    if not finished:
        sys.exit(PREEMPTED)


def train(config: TrainingConfig, workdir: str, *, allow_config_change: bool = False) -> bool:
    """Train to `config.train.steps`, from the last checkpoint in `workdir` where there is one.

    Returns:
        Whether the last step was reached; else SIGTERM stopped the run, and it is saved.

    Raises:
        InputError: data, checkpoint or config that do not fit, a loss that is not finite, a disk that is full.
    """
    terminated = distributed.listen_for_sigterm()
    first_process = jax.process_index() == 0
    compiled = CompilationCache(config.compilation_cache, workdir)
    profile = Profile(workdir, config.profile.steps)

    # ---------------------------------------------------------------------------------------------------- data
    mesh = make_mesh(dataclasses.asdict(config.mesh))
    info = DatasetInfo.read(config.data.dir)
    first_stage = load_first_stage(**dataclasses.asdict(config.first_stage))
    info.check(config.data, first_stage, config.architecture.out_channels)
    held_out = info
    if config.evaluate.dir:
        held_out = DatasetInfo.read(config.evaluate.dir)
        held_out.check(config.data, first_stage, config.architecture.out_channels)
    shardings = {name: leaf.sharding for name, leaf in abstract_batch(config, info, mesh).items()}
    iterator = _device_iterator(config, info, shardings)

    # --------------------------------------------------------------------------------------------------- state
    abstract = abstract_state(config, mesh)
    placed = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    checkpoints = Checkpoints(workdir, keep=config.checkpoint.keep, keep_every=config.checkpoint.keep_every)
    saved_config = to_mapping(config)
    start = distributed.agree(checkpoints.latest or 0)
    if start:
        _check_config(checkpoints.config(start), saved_config, f"{workdir} step {start}", allow_config_change)
        state = checkpoints.restore(start, abstract, iterator)
    else:
        state = jax.jit(lambda: init_state(config), out_shardings=placed)()
        if config.train.init_from:
            state |= _initial_weights(config, placed)

    # ------------------------------------------------------------------------------------------------ programs
    started = time.perf_counter()
    train_step = lower_train_step(config, info, mesh).compile()
    seconds = time.perf_counter() - started
    if config.evaluate.every:
        evaluate, pairs = make_evaluate(config, first_stage, mesh), spread_records(held_out, config.evaluate.images)
    if first_process:
        print(_describe(config, workdir, info, mesh, state, start, train_step, f"in {seconds:.1f} s, {compiled}"))

    # ---------------------------------------------------------------------------------------------------- loop
    logs = Logs(workdir, start) if first_process else None
    watch, window = FiniteWatch(workdir, config.train.nan_patience), Window(config.train.batch_size)
    bar = tqdm(total=config.train.steps, initial=start, unit="step", disable=not first_process, dynamic_ncols=True)
    step = start
    try:
        # Evaluate, save, and only then take the next batch: a checkpoint holds the iterator as it stands at its step.
        while True:
            last = step >= config.train.steps
            stop = last or terminated(step)
            if config.evaluate.every and step > start and (last or step % config.evaluate.every == 0):
                window.add(0.0, watch.settle())
                scores, picture = evaluate(state["ema"], pairs)
                if logs:
                    logs.scalars(step, {f"evaluate/{name}": value for name, value in scores.items()})
                    path = logs.picture(step, "samples", picture)
                    bar.write(f"step {step}: PSNR {scores['psnr']:.2f} dB, SSIM {scores['ssim']:.4f}, {path}")
                window.restart()
            if step > start and (stop or step % config.checkpoint.every == 0):
                window.add(0.0, watch.settle())
                # Steps that were not finite changed no parameter: what is saved at a stop is good all the same.
                if watch.healthy or stop:
                    checkpoints.save(step, state, iterator, saved_config)
                window.restart()
            if stop:
                break
            waiting = time.perf_counter()
            batch, names = next(iterator)
            waited = time.perf_counter() - waiting
            profile.before(step + 1)
            state, metrics = train_step(state, batch)
            step += 1
            profile.after(step, metrics)
            window.add(waited, watch.add(step, metrics, names))
            bar.update()
            if step % config.train.log_every == 0:
                values = window.report(watch.settle())
                bar.set_postfix_str(
                    f"loss {values.get('loss', float('nan')):.4f}, {values['samples_per_second']:.1f} samples/s, "
                    f"data wait {values['data_wait_share']:.0%}"
                )
                if logs:
                    logs.scalars(step, values)
    finally:
        profile.close()
        bar.close()
        if logs:
            logs.close()
        iterator.close()
        checkpoints.close()
    if first_process:
        reason = "finished" if last else "SIGTERM: stopped, the same command goes on"
        print(f"{reason}; step {step} of {config.train.steps}, checkpoints in {checkpoints.directory}")
    return last


def _device_iterator(config: TrainingConfig, info: DatasetInfo, shardings):
    """Batches on the devices, each with the host's `record` and `position` of its examples beside it."""
    size, rows = config.train.batch_size, math.prod(shardings["low"].mesh.shape[axis] for axis in ("data", "fsdp"))
    if size % (rows * config.optim.accumulate):
        raise InputError(
            f"train.batch_size {size} must be a multiple of the mesh's data × fsdp, {rows}, times optim.accumulate "
            f"{config.optim.accumulate}"
        )
    share, shares = process_share(shardings["position"], size)

    def to_devices(batch):
        arrays = {
            name: jax.make_array_from_process_local_data(sharding, batch[name], (size, *batch[name].shape[1:]))
            for name, sharding in shardings.items()
        }
        return arrays, {name: batch[name] for name in ("record", "position")}

    return iter(
        batches(
            info,
            batch_size=size // shares,
            seed=config.seed,
            process_index=share,
            process_count=shares,
            num_threads=config.data.num_threads,
            prefetch=config.data.prefetch,
            to_devices=to_devices,
        )
    )


def _check_config(saved: dict, present: dict, where: str, allow_change: bool) -> None:
    """Refuse to go on with another network, or with another config unless that is allowed."""
    # An older version's config lacks fields that have been added since.
    saved = to_mapping(from_mapping(TrainingConfig, saved, f"config of checkpoint {where}"))
    network = changes(*({name: config[name] for name in ("network", config["network"])} for config in (saved, present)))
    if network:
        raise InputError(
            f"checkpoint {where} is of another architecture: {', '.join(network[:5])}; "
            "set the config back or choose another --workdir"
        )
    others = [line for line in changes(saved, present) if not line.startswith(SURROUNDINGS)]
    if others and not allow_change:
        raise InputError(
            f"the config has changed since checkpoint {where}: {', '.join(others)}; set it back, choose another "
            "--workdir, or go on with --allow_config_change"
        )


def _initial_weights(config: TrainingConfig, placed) -> dict:
    """Parameters and average of another run's averaged weights."""
    parameters, saved, step = load_weights(config.train.init_from)
    _check_config(saved, to_mapping(config), f"{config.train.init_from} step {step}", allow_change=True)
    return {name: place(parameters, placed[name]) for name in ("parameters", "ema")}


def _describe(
    config: TrainingConfig, workdir: str, info: DatasetInfo, mesh: Mesh, state, start: int, program, compiled: str
) -> str:
    memory, cost = program.memory_analysis(), program.cost_analysis()
    rows = {
        "workdir": f"{os.path.abspath(workdir)}, {f'going on from step {start}' if start else 'from the beginning'}",
        "data": f"{info.folder}: {info.records:,} pairs, latents {info.low_shape} → {info.high_shape}",
        "flow": f"{config.path} path from {config.source.start}, noise step {config.source.noise_step}",
        "UNet": f"{count(state['parameters']):,} parameters, computes in {config.architecture.dtype}",
        "training": f"{config.train.steps:,} steps of {config.train.batch_size} in {config.optim.accumulate} part(s)",
        "devices": f"{len(mesh.devices.flat)} × {mesh.devices.flat[0].device_kind}, {jax.process_count()} process(es)",
        "mesh": ", ".join(f"{axis} {length}" for axis, length in mesh.shape.items()),
        "compiled": f"{compiled}: {size(memory.argument_size_in_bytes)} arguments and "
        f"{size(memory.temp_size_in_bytes)} temporaries, {size(cost.get('flops', 0), 'FLOP')} a step, each a device",
    }
    sections = {
        f"config.{name}": ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value
        for name, value in to_mapping(config).items()
    }
    return table(sections | rows)


if __name__ == "__main__":
    run(main)
