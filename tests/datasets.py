"""Small datasets of random latents, written by the package's own writer."""

import dataclasses

import numpy as np

from fmboost_jax.data.dataset import DatasetInfo, Recipe
from fmboost_jax.data.records import ShardWriter, encode
from fmboost_jax.files import write_atomically


def make_recipe(**changes) -> Recipe:
    """Pixels as latents, 8² → 16², with any field changed."""
    plain = Recipe(
        first_stage="identity",
        first_stage_path="",
        channels=3,
        downsampling=1,
        scaling_factor=1.0,
        shift_factor=0.0,
        high_res=16,
        low_res=8,
        upsampling="psu",
        dtype="float16",
        crops=0,
        crop_scale=1.0,
        seed=0,
    )
    return dataclasses.replace(plain, **changes)


def write_dataset(folder, shards=(5, 4, 6), **changes) -> DatasetInfo:
    """A dataset with so many records in each shard; `changes` are the recipe's."""
    recipe, random = make_recipe(**changes), np.random.default_rng(0)
    entries = []
    for shard, records in enumerate(shards):
        writer = ShardWriter(folder, f"shards/{shard:05d}.array_record")
        for place in range(records):
            low, high = random.normal(size=recipe.low_shape), random.normal(size=recipe.high_shape)
            writer.write(encode(recipe, (shard, place, 7, place), low, high))
        entries.append(writer.finish())
    info = DatasetInfo(**dataclasses.asdict(recipe), folder=folder, photos=1, skipped=0, shards=tuple(entries))
    write_atomically(folder / "dataset.json", info.to_json().encode())
    return info
