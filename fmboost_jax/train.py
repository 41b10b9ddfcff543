"""Train an upsampler on latent pairs.

    python -m fmboost_jax.train --config configs/cfm1024.py --config.data.dir=DATA --workdir RUN

The same command, started again, continues from the last checkpoint and ends with the same bits as an uninterrupted run.
SIGTERM saves and stops, with exit code 143. On several hosts, each runs this command (docs/pods.md).
"""

import argparse
import dataclasses
import math
import os
import sys
import time

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from fmboost_jax.boosting.bundle import is_bundle, read_bundle
from fmboost_jax.configuration import changes, parse_arguments, to_mapping
from fmboost_jax.data.dataset import DatasetInfo
from fmboost_jax.data.originals import original_images
from fmboost_jax.data.pipeline import batches, spread_records
from fmboost_jax.errors import PREEMPTED, InputError, run
from fmboost_jax.flow.objectives import Reflow, make_objective
from fmboost_jax.interop.autoencoders import load_first_stage
from fmboost_jax.interop.hub import local_folder
from fmboost_jax.models.parameters import Parameters, count
from fmboost_jax.models.unet import UNetConfig
from fmboost_jax.parallel import distributed
from fmboost_jax.parallel.mesh import make_mesh
from fmboost_jax.parallel.sharding import place, process_share, replicated
from fmboost_jax.runtime.compilation import CompilationCache
from fmboost_jax.runtime.lock import FolderLock
from fmboost_jax.runtime.memory import keep_freed_memory
from fmboost_jax.runtime.profile import Profile
from fmboost_jax.tables import size, table
from fmboost_jax.training import loop
from fmboost_jax.training.checkpoints import Checkpoints, load_weights
from fmboost_jax.training.config import TrainingConfig, read_saved
from fmboost_jax.training.evaluation import make_evaluate
from fmboost_jax.training.finish import Finish
from fmboost_jax.training.program import abstract_batch, abstract_state, lower_train_step
from fmboost_jax.training.step import init_state
from fmboost_jax.training.tracker import check_tracker

# Sections of a config that may change when a run resumes: they do not change the result.
RUNTIME_SECTIONS = ("mesh.", "processes.", "profile.", "compilation_cache:", "train.tracker:")
# Fields of an architecture on which its weights do not depend.
_WITHOUT_WEIGHTS = ("dtype", "remat", "dropout")


def main(argv: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        "fmboost_jax.train", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--workdir", required=True, help="folder of the run: checkpoints, metrics.jsonl, sample grids")
    parser.add_argument("--allow-config-change", action="store_true", help="continue although the config has changed")
    _add_process_options(parser)
    arguments, config = parse_arguments(parser, sys.argv[1:] if argv is None else argv, TrainingConfig)
    check_tracker(config.train.tracker)
    keep_freed_memory()
    launcher = (arguments.coordinator, arguments.process_count, arguments.process_index)
    with distributed.processes(*launcher, timeout=config.processes.timeout):
        finished = train(config, arguments.workdir, allow_config_change=arguments.allow_config_change)
    if not finished:
        sys.exit(PREEMPTED)


def _add_process_options(parser: argparse.ArgumentParser) -> None:
    many = parser.add_argument_group("many processes (detected on TPU, GKE and SLURM, and under Open MPI)")
    many.add_argument("--coordinator", metavar="HOST:PORT", help="address of process 0")
    many.add_argument("--process-count", type=int, help="processes of the run")
    many.add_argument("--process-index", type=int, help="number of this process, from 0")


def train(config: TrainingConfig, workdir: str, *, allow_config_change: bool = False) -> bool:
    """Train to `config.train.steps`, from the last checkpoint in `workdir` where there is one.

    Returns:
        Whether the last step was reached; False if SIGTERM stopped the run after saving it.

    Raises:
        InputError: another training in `workdir`; data, checkpoint or config that do not fit, a loss that is not
            finite, a disk that is full.
    """
    with distributed.in_first_process(FolderLock(workdir)) as lock:
        return _train(config, workdir, allow_config_change, lock)


def _train(config: TrainingConfig, workdir: str, allow_config_change: bool, lock: FolderLock | None) -> bool:
    terminated = distributed.listen_for_sigterm()
    first_process = jax.process_index() == 0
    compiled = CompilationCache(config.compilation_cache, workdir)
    profile = Profile(workdir, config.profile.steps)

    # ---------------------------------------------------------------------------------------------------- data
    mesh = make_mesh(dataclasses.asdict(config.mesh))
    info = DatasetInfo.read(config.data.dir)
    first_stage = load_first_stage(**dataclasses.asdict(config.first_stage))
    info.check(config.data, first_stage, config.architecture.state_channels)
    _check_teacher(config, info)
    held_out = info
    if config.evaluate.dir:
        held_out = DatasetInfo.read(config.evaluate.dir)
        # The evaluation does not read the records' images.
        without_images = dataclasses.replace(config.data, images=False)
        held_out.check(without_images, first_stage, config.architecture.state_channels)
    shardings = {name: leaf.sharding for name, leaf in abstract_batch(config, info, mesh).items()}
    iterator = _device_iterator(config, info, shardings)

    # --------------------------------------------------------------------------------------------------- state
    abstract = abstract_state(config, mesh)
    placed = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    keep, keep_every = config.checkpoint.keep, config.checkpoint.keep_every
    checkpoints = Checkpoints(workdir, keep=keep, keep_every=keep_every, lock=lock)
    saved_config = to_mapping(config)
    start = distributed.agree(checkpoints.latest or 0)
    if start:
        _check_config(checkpoints.config(start), saved_config, f"{workdir} step {start}", allow_config_change)
        state = checkpoints.restore(start, abstract, iterator)
    else:
        if isinstance(config.architecture, UNetConfig):
            config.architecture.check_attention()
        state = jax.jit(init_state, static_argnums=0, out_shardings=placed)(config)
        if config.train.init_from:
            weights = _initial_weights(config, state.parameters, placed.parameters)
            state = dataclasses.replace(state, parameters=weights, ema=jax.tree.map(jnp.copy, weights))

    # ------------------------------------------------------------------------------------------------ programs
    started = time.perf_counter()
    finish = Finish.of(config.finish, first_stage, config.data.high_res // config.data.low_res)
    program = lower_train_step(config, info, mesh, finish).compile()
    seconds = time.perf_counter() - started
    frozen = () if finish is None else (place(finish.parameters, dict.fromkeys(finish.parameters, replicated(mesh))),)
    evaluation = None
    if config.evaluate.every:
        evaluate, pairs = make_evaluate(config, first_stage, mesh), spread_records(held_out, config.evaluate.images)
        if config.evaluate.photographs:
            pairs["photograph"] = original_images(held_out, pairs["record"], config.evaluate.photographs)
        evaluation = loop.Evaluation(lambda ema: evaluate(ema, pairs), config.evaluate.every, "samples")
    if first_process:
        print(_describe(config, workdir, info, mesh, state, start, program, f"in {seconds:.1f} s, {compiled}"))

    # ---------------------------------------------------------------------------------------------------- loop
    state, finished = loop.run(
        state,
        iterator,
        lambda state, batch: program(state, batch, *frozen),
        workdir=workdir,
        config=config.train,
        checkpoints=checkpoints,
        checkpoint_every=config.checkpoint.every,
        saved_config=saved_config,
        start=start,
        evaluation=evaluation,
        profile=profile,
        terminated=terminated,
    )
    if first_process:
        reason = "finished" if finished else "stopped by SIGTERM; the same command resumes"
        print(f"{reason}; step {int(state.step)} of {config.train.steps}, checkpoints in {checkpoints.directory}")
    return finished


def _device_iterator(config: TrainingConfig, info: DatasetInfo, shardings):
    """Batches on the devices, each with the `record` and `position` of its examples on the host."""
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


def _check_teacher(config: TrainingConfig, info: DatasetInfo) -> None:
    """Refuse an objective that needs a teacher's pairs where there are none, and pairs from another source."""
    if info.teacher is None:
        if isinstance(make_objective(config.objective), Reflow):
            raise InputError(
                f"objective {config.objective} trains on pairs that a flow made; {info.folder} has the photographs' "
                "own; make them with python -m fmboost_jax.precompute --pairs DATA --teacher RUN"
            )
    elif info.teacher.source != config.coupling:
        differences = ", ".join(changes(to_mapping(info.teacher.source), to_mapping(config.coupling)))
        raise InputError(f"config.source differs from the teacher's of {info.folder}: {differences}; set it back")


def _check_config(saved: dict, present: dict, where: str, allow_change: bool) -> None:
    """Refuse to continue with another network, or with another config unless that is allowed."""
    saved = to_mapping(read_saved(TrainingConfig, saved, f"config of checkpoint {where}"))
    _check_network(saved, present, where)
    others = [line for line in changes(saved, present) if not line.startswith(RUNTIME_SECTIONS)]
    if others and not allow_change:
        raise InputError(
            f"the config has changed since checkpoint {where}: {', '.join(others)}; set it back, choose another "
            "--workdir, or resume with --allow-config-change"
        )


def _check_network(saved: dict, present: dict, where: str) -> None:
    before, after = ({name: config[name] for name in ("network", config["network"])} for config in (saved, present))
    network = changes(before, after)
    if network:
        raise InputError(
            f"{where} has another architecture: {', '.join(network[:5])}; "
            "set the config back or choose another --workdir"
        )


def _initial_weights(config: TrainingConfig, fresh: Parameters, shardings) -> Parameters:
    """A bundle's or another run's averaged weights; those of a second time are fresh where its network has none."""
    where = config.train.init_from
    folder = local_folder(where, "train.init_from")
    if is_bundle(folder):
        parameters, bundle = read_bundle(folder)
        before = {"network": bundle.network, bundle.network: to_mapping(bundle.architecture)}
    else:
        parameters, saved, step = load_weights(folder)
        where = f"{where} step {step}"
        before = to_mapping(read_saved(TrainingConfig, saved, f"config of checkpoint {where}"))
    network, present = before[before["network"]], to_mapping(config)
    if config.architecture.time_inputs == 2 and network.get("time_inputs") == 1:
        network["time_inputs"] = 2
        parameters = {**fresh, **parameters}
    if before["network"] == config.network:
        network |= {name: present[config.network][name] for name in _WITHOUT_WEIGHTS if name in network}
    _check_network(before, present, where)
    return place(parameters, shardings)


def _describe(
    config: TrainingConfig, workdir: str, info: DatasetInfo, mesh: Mesh, state, start: int, program, compiled: str
) -> str:
    memory, cost = program.memory_analysis(), program.cost_analysis()
    rows = {
        "workdir": f"{os.path.abspath(workdir)}, {f'resuming from step {start}' if start else 'from the beginning'}",
        "data": f"{info.folder}: {info.records:,} pairs, latents {info.low_shape} → {info.high_shape}",
        "flow": f"{config.path} path from {config.source.start}, noise step {config.source.noise_step}",
        "UNet": f"{count(state.parameters):,} parameters, computes in {config.architecture.dtype}",
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
