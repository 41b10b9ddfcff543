"""The weights and the config that a booster is loaded from: a bundle or a training run."""

import dataclasses
import os
from typing import Any, cast

from fmboost_jax.boosting.bundle import BundleConfig, is_bundle, read_bundle
from fmboost_jax.errors import InputError
from fmboost_jax.interop.autoencoders import first_stage_kind, load_first_stage
from fmboost_jax.interop.hub import local_folder
from fmboost_jax.models.first_stage import FirstStage
from fmboost_jax.models.networks import VelocityNetwork, abstract_network
from fmboost_jax.models.parameters import merge, split


def read_weights(
    directory: str | os.PathLike, *, step: int | None, dtype: str | None, first_stage: str | None
) -> tuple[VelocityNetwork, FirstStage, BundleConfig]:
    """Return network, first stage and config; arguments and errors as for `Booster.load`."""
    folder = local_folder(os.fspath(directory), "booster")
    if is_bundle(folder):
        if step is not None:
            raise InputError(f"bundle {directory} holds the weights of one step; found step={step}")
        parameters, config = read_bundle(folder)
        path, kind = first_stage or config.latents.path, config.latents.kind
        # Another autoencoder with the same latents, such as FLUX.2's own in place of its tiny imitation.
        kind = first_stage_kind(path, kind) if first_stage else kind
        stage = load_first_stage(kind, path, dtype or "float32", config.latents.inversion_steps)
        config.latents.check(stage.spec, f"first stage {stage.path}")
    else:
        # Checkpoints need orbax and grain, which a bundle does without.
        from fmboost_jax.boosting.run import read_run

        parameters, config, stage = read_run(folder, step=step, first_stage=first_stage, dtype=dtype)
    network_config: Any = config.architecture
    if dtype:
        network_config = dataclasses.replace(network_config, dtype=dtype)
    graph = split(abstract_network(network_config))[0]
    return cast(VelocityNetwork, merge(graph, parameters)), stage, config
