"""Weights, config and latent statistics of a training run, for boosting."""

import jax.numpy as jnp

from fmboost_jax.boosting.bundle import BundleConfig
from fmboost_jax.data.dataset import DatasetInfo
from fmboost_jax.data.pipeline import spread_records
from fmboost_jax.errors import InputError
from fmboost_jax.interop.autoencoders import load_first_stage
from fmboost_jax.models.first_stage import FirstStage, LatentStatistics
from fmboost_jax.models.parameters import Parameters
from fmboost_jax.training.checkpoints import load_weights
from fmboost_jax.training.config import TrainingConfig, read_saved

STATISTICS_RECORDS = 256


def read_run(
    folder: str, *, step: int | None = None, first_stage: str | None = None, dtype: str | None = None
) -> tuple[Parameters, BundleConfig, FirstStage]:
    """Averaged weights, config and first stage of a training run; arguments and errors as for `Booster.load`."""
    parameters, saved, step = load_weights(folder, step=step)
    config = read_saved(TrainingConfig, saved, f"config of run {folder}")
    autoencoder = config.first_stage
    stage = load_first_stage(
        autoencoder.kind, first_stage or autoencoder.path, dtype or autoencoder.dtype, autoencoder.inversion_steps
    )
    data = config.data
    bundle = BundleConfig(
        architecture=config.architecture,
        source=config.coupling,
        path=config.path,
        factor=data.high_res // data.low_res,
        low_res=data.low_res,
        high_res=data.high_res,
        latents=stage.spec,
        step=step,
        network=config.network,
        objective=config.objective,
        steps=config.recommended_steps,
        statistics=_statistics(config, stage),
    )
    return parameters, bundle, stage


def _statistics(config: TrainingConfig, stage: FirstStage) -> LatentStatistics | None:
    """Statistics of some of the run's latents; None where its dataset is missing.

    The high-res ones: small latents are encoded photographs, too, while PSU's were encoded from enlarged images.
    """
    try:
        info = DatasetInfo.read(config.data.dir)
        if info.channels != stage.channels:  # another dataset in a folder of that name
            return None
        high = spread_records(info, STATISTICS_RECORDS)["high"]
    except InputError:
        return None
    return LatentStatistics.of(stage.spec.scale(jnp.asarray(high, jnp.float32)))
