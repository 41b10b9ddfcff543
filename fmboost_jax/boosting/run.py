"""What boosting needs of a training run."""

from fmboost_jax.boosting.bundle import BundleConfig
from fmboost_jax.interop.autoencoders import load_first_stage
from fmboost_jax.models.first_stage import FirstStage
from fmboost_jax.models.parameters import Parameters
from fmboost_jax.training.checkpoints import load_weights


def read_run(
    folder: str, *, step: int | None = None, first_stage: str | None = None
) -> tuple[Parameters, BundleConfig, FirstStage]:
    """Averaged weights, config and first stage of a training run; arguments and errors as for `Booster.load`."""
    parameters, config, step = load_weights(folder, step=step)
    told = {"path": first_stage} if first_stage else {}
    stage = load_first_stage(**{**config["first_stage"], **told})
    return parameters, BundleConfig.of_run(config, stage, step), stage
