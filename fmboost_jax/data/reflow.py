"""Latent pairs for reflow: a trained flow makes the high-res latent of each pair from noise that the record keeps.

Rectified flow (Liu et al. 2022, arXiv 2209.03003): a new flow that is trained on such pairs is straighter. The low-res
latents are those of an existing dataset. Shards, checksums and continuation are those of `fmboost_jax.data.pairs`.
"""

import dataclasses
import hashlib
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt32
from tqdm import tqdm

from fmboost_jax.data.dataset import DTYPES, DatasetInfo, Teacher
from fmboost_jax.data.pairs import missing_shards, publish_dataset
from fmboost_jax.data.records import PairSource, ShardWriter, encode
from fmboost_jax.data.shards import FinishedShard, Plan
from fmboost_jax.errors import InputError
from fmboost_jax.models.first_stage import FirstStage
from fmboost_jax.parallel.batching import map_batches
from fmboost_jax.parallel.distributed import check_share

# (scaled low-res latents, numbers of the new records) → scaled high-res latents.
Boost = Callable[[Float[Array, "b h w c"], UInt32[np.ndarray, "b"]], Float[Array, "b H W c"]]


def reflow_pairs(
    pairs: DatasetInfo,
    teacher: Teacher,
    boost: Boost,
    first_stage: FirstStage,
    out: pathlib.Path,
    *,
    process_index: int = 0,
    process_count: int = 1,
    records_per_shard: int = 1024,
    batch_size: int = 8,
    batch_multiple: int = 1,
) -> DatasetInfo | None:
    """Write the missing shards of this process, and dataset.json when no shard is missing.

    Args:
        pairs: dataset whose low-res latents the teacher boosts.
        teacher: description of the flow, for dataset.json.
        boost: the flow. It draws the noise of record k from `record_keys(teacher.seed, k)`.
        first_stage: autoencoder of the dataset, for the preview.
        out: folder of the new dataset.
        process_index, process_count, records_per_shard: as for `fmboost_jax.data.pairs.precompute`.
        batch_size: latents boosted at the same time.
        batch_multiple: required multiple of the batch size: the number of devices that share it.

    Returns:
        The dataset; None if shards of other processes are missing.

    Raises:
        InputError: `pairs` has a teacher itself, `out` has shards with other settings, a latent that the dtype of the
            dataset cannot represent, or the disk is full.
    """
    check_share(process_index, process_count)
    if pairs.teacher is not None:
        raise InputError(f"{pairs.folder}: its high-res latents were made by a flow; name the dataset of photographs")
    plan = Plan(
        folder=out,
        recipe=dataclasses.replace(pairs.recipe, images=False, teacher=teacher),
        photos=pairs.records,
        photos_per_shard=max(1, records_per_shard // teacher.draws),
        fingerprint=hashlib.sha256("".join(shard.sha256 for shard in pairs.shards).encode()).hexdigest(),
    )
    missing, source = missing_shards(plan, process_index, process_count), PairSource(pairs)
    records = sum(len(plan.shard_photos(shard)) for shard in missing) * teacher.draws
    with tqdm(total=records, desc="boosting", unit="pair", disable=not missing, dynamic_ncols=True) as bar:
        for shard in missing:
            _make_shard(plan, source, shard, boost, batch_size, batch_multiple, bar)
    return publish_dataset(plan, first_stage, "latent pairs")


def _make_shard(
    plan: Plan, source: PairSource, shard: int, boost: Boost, batch_size: int, multiple: int, bar: tqdm
) -> None:
    recipe = plan.recipe
    assert recipe.teacher is not None
    draws, numbers = recipe.teacher.draws, plan.shard_photos(shard)

    def boost_batch(low: Float[np.ndarray, "b h w c"], records: UInt32[np.ndarray, "b"]) -> Array:
        scaled = recipe.latents.scale(jnp.asarray(low, jnp.float32))
        return recipe.latents.unscale(boost(scaled, records))

    plan.remove_partial(shard)
    writer = ShardWriter(plan.folder, plan.shard_name(shard))
    repeated = [number for number in numbers for _ in range(draws)]
    for first in range(0, len(repeated), batch_size):
        batch = repeated[first : first + batch_size]
        lows = {number: source[number]["low"] for number in dict.fromkeys(batch)}
        low = np.stack([lows[number] for number in batch])
        records = np.arange(numbers[0] * draws + first, numbers[0] * draws + first + len(batch), dtype=np.uint32)
        highs = jax.device_get(map_batches(boost_batch, [low, records], batch_size, multiple=multiple))
        largest = float(np.abs(highs).max())
        if not largest <= float(jnp.finfo(DTYPES[recipe.dtype]).max):
            raise InputError(f"records {records[0]} to {records[-1]}: a latent reaches {largest}; check the teacher")
        for place, number, small, high in zip(range(first, first + len(batch)), batch, low, highs, strict=True):
            writer.write(encode(recipe, (shard, place, *source.origin(number)), small, high))
        bar.update(len(batch))
    entry = writer.finish()
    names = tuple(f"pair {number}" for number in numbers)
    plan.finish_shard(shard, FinishedShard(entry.name, entry.records, entry.bytes, entry.sha256, names, ()))
