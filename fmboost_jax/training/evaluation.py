"""Evaluation during training: the averaged weights boost held-out latents, decoded beside their originals."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fmboost_jax.errors import InputError
from fmboost_jax.flow.boost import boost_latents, check_solver
from fmboost_jax.flow.objectives import make_objective
from fmboost_jax.flow.solvers import Solver
from fmboost_jax.images.grid import grid
from fmboost_jax.images.resize import upsample
from fmboost_jax.images.value_range import to_float, to_uint8
from fmboost_jax.metrics.table import METRICS
from fmboost_jax.models.first_stage import FirstStage
from fmboost_jax.models.networks import abstract_network
from fmboost_jax.models.parameters import merge, split
from fmboost_jax.parallel.batching import map_batches
from fmboost_jax.parallel.sharding import batch_sharding
from fmboost_jax.training.config import TrainingConfig

GRID_ROWS = 4
# Entries of `METRICS` that need no network: (images, originals) → (b,).
SCORES = {name: function for name in ("psnr", "ssim", "sharpness") if (function := METRICS[name].function) is not None}
# Prefixes of the scores' names: which images are compared with which.
COMPARISONS = {
    "": ("boosted", "decoded"),
    "low_res/": ("low_res", "decoded"),
    "photograph/": ("boosted", "photograph"),
    "photograph/low_res/": ("low_res", "photograph"),
    "photograph/decoded/": ("decoded", "photograph"),
}


def make_evaluate(config: TrainingConfig, first_stage: FirstStage, mesh: Mesh):
    """Return the function (averaged parameters, pairs) → (scores, image grid).

    Pairs are host arrays `low`, `high` of raw latents, and `photograph`, the images (uint8) behind `high`, where they
    are known. Scores are means over them: `psnr`, `ssim` and `sharpness` (gradient energy over the original's) of the
    boosted images against the decoded high-res latents, and those of the other `COMPARISONS` under their prefixes.
    Comparison with photographs includes the autoencoder's error, comparison with decoded latents does not; the scores
    under `photograph/decoded/` are an upper bound for a booster. The grid has rows low-res | boosted | original.
    The noise depends on `config.seed` and the batch size alone, so evaluations are comparable.

    Raises:
        InputError: `config.evaluate`'s method or steps are not those of a network with two times.
    """
    graph = split(abstract_network(config.architecture))[0]
    solver, objective = Solver(config.evaluate.method, config.evaluate.steps), make_objective(config.objective)
    try:
        check_solver(objective, solver)
    except InputError as error:
        raise InputError(f"{error}; set evaluate.method and evaluate.steps, or evaluate.every=0") from error
    replicated = NamedSharding(mesh, PartitionSpec())

    @functools.partial(jax.jit, out_shardings=replicated)
    def boost(parameters, low, high, first):
        noise_key, mode_key = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), first))
        low, high = (first_stage.spec.scale(latent.astype(jnp.float32)) for latent in (low, high))
        boosted = boost_latents(
            merge(graph, parameters).velocity,
            low,
            jax.random.normal(noise_key, high.shape),
            coupling=config.coupling,
            solver=solver,
            objective=objective,
            upsampling_noise=jax.random.normal(mode_key, high.shape),
        )
        return low, boosted, high

    @jax.jit
    def score(images):
        # Clipped, as pixels of a file are: values outside the range change the PSNR by up to 1 dB.
        images = {name: jnp.clip(image, -1, 1) for name, image in images.items()}
        images["low_res"] = upsample(images["low_res"], images["decoded"].shape[1:3], "bilinear")
        return {
            prefix + name: function(images[image], images[original])
            for prefix, (image, original) in COMPARISONS.items()
            if original in images
            for name, function in SCORES.items()
        }

    def evaluate(parameters, pairs: dict[str, np.ndarray]):
        rows: dict[int, list[np.ndarray]] = {}
        sharding = batch_sharding(mesh)

        def score_batch(low, high, numbers, photographs=None) -> dict[str, np.ndarray]:
            pair = (jax.make_array_from_callback(x.shape, sharding, x.__getitem__) for x in (low, high))
            # The boost runs on all devices; every process then decodes its own copy on one of its devices.
            latents = jax.device_get(boost(parameters, *pair, np.uint32(numbers[0])))
            images = [first_stage.decode(jnp.asarray(latent)) for latent in latents]
            compared: dict[str, jax.Array] = dict(zip(("low_res", "boosted", "decoded"), images, strict=True))
            if photographs is not None:
                compared["photograph"] = to_float(photographs)
            scores, images = jax.device_get((score(compared), images))
            first = int(numbers[0])
            for number in numbers[: max(0, GRID_ROWS - first)]:
                rows[int(number)] = [to_uint8(image[number - first]) for image in images]
            return scores

        count, multiple = len(pairs["low"]), mesh.shape["data"] * mesh.shape["fsdp"]
        arrays = [pairs["low"], pairs["high"], np.arange(count)]
        if "photograph" in pairs:
            arrays.append(pairs["photograph"])
        scores = map_batches(score_batch, arrays, min(count, config.train.batch_size), multiple=multiple)
        means = {name: float(np.mean(values)) for name, values in scores.items()}
        return means, grid(list(rows.values()), ["low-res", "boosted", "original"])

    return evaluate
