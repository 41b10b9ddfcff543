"""What boosting needs of a training run."""

from fmboost_jax.boosting.bundle import BundleConfig
from fmboost_jax.interop.autoencoders import load_first_stage
from fmboost_jax.models.first_stage import FirstStage
from fmboost_jax.models.parameters import Parameters
from fmboost_jax.training.checkpoints import load_weights
from fmboost_jax.training.config import TrainingConfig, read_saved


def read_run(
    folder: str, *, step: int | None = None, first_stage: str | None = None
) -> tuple[Parameters, BundleConfig, FirstStage]:
    """Averaged weights, config and first stage of a training run; arguments and errors as for `Booster.load`."""
    parameters, saved, step = load_weights(folder, step=step)
    config = read_saved(TrainingConfig, saved, f"config of run {folder}")
    autoencoder = config.first_stage
    stage = load_first_stage(autoencoder.kind, first_stage or autoencoder.path, autoencoder.dtype)
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
    )
    return parameters, bundle, stage
