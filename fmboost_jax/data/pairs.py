"""Latent pairs from photographs: crops, encoding, shards, and a preview."""

import itertools
import pathlib
import time
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8
from tqdm import tqdm

from fmboost_jax.data.crops import crops
from fmboost_jax.data.dataset import DTYPES, DatasetInfo, Recipe, Shard
from fmboost_jax.data.pipeline import spread_records
from fmboost_jax.data.records import ShardWriter, encode
from fmboost_jax.data.shards import FinishedShard, Plan
from fmboost_jax.data.sources import Photos
from fmboost_jax.data.threads import batched, in_order
from fmboost_jax.errors import InputError, some
from fmboost_jax.images.grid import grid
from fmboost_jax.images.photos import UnusablePhoto, load_photo
from fmboost_jax.images.png import write_png
from fmboost_jax.images.resize import shrink, upsample
from fmboost_jax.images.value_range import to_float, to_uint8
from fmboost_jax.models.first_stage import FirstStage
from fmboost_jax.parallel.batching import map_batches
from fmboost_jax.parallel.distributed import check_share

Encode = Callable[[UInt8[np.ndarray, "b h w 3"], Int[np.ndarray, "b"]], tuple[Array, Array]]

PREVIEW_PAIRS = 6
PREVIEW_HEIGHT = 2048  # pixels


def _print_skipped(skipped: list[tuple[str, str]], out: pathlib.Path) -> None:
    if skipped:
        named = some([": ".join(photo) for photo in skipped])
        print(f"skipped {len(skipped)}: {named}; {out / 'shards'}/*.json have all of them")


def make_encode(first_stage: FirstStage, recipe: Recipe) -> Encode:
    """Return a function of high-res images, uint8, and their crop numbers; it returns raw low- and high-res latents."""

    base = first_stage.plain  # encodes small images as for a base model

    @jax.jit
    def small_and_large(pixels: UInt8[Array, "b h w 3"]) -> tuple[Float[Array, "b l l 3"], Float[Array, "b h w 3"]]:
        high = to_float(pixels)
        return shrink(high, recipe.low_res), high

    @jax.jit
    def enlarge(low: Float[Array, "b l l 3"]) -> Float[Array, "b h w 3"]:
        return upsample(low, recipe.high_res, recipe.pixel_filter) if recipe.pixel_filter else low

    def through_latents(low: Float[Array, "b l l 3"], crop: Int[np.ndarray, "b"]) -> Float[Array, "b l l 3"]:
        if recipe.low_res_source == "pixels":
            return low
        decoded = base.decode(base.encode(low))
        if recipe.low_res_source == "latents":
            return decoded
        return jnp.where((crop % 2 == 1)[:, None, None, None], decoded, low)

    def encode_pair(pixels, crop):
        low, high = small_and_large(pixels)
        if recipe.pixel_filter:
            low = enlarge(through_latents(low, crop))
        return first_stage.encode_raw(low), first_stage.encode_raw(high)

    return encode_pair


def make_shards(
    plan: Plan, source: Photos, shards: list[int], encode_pair: Encode, batch_size: int, num_threads: int
) -> None:
    """Write the given shards, with a progress bar. Threads decode photographs while the encoder runs."""
    photos = [photo for shard in shards for photo in plan.shard_photos(shard)]
    loaded = in_order(lambda photo: _load(source, plan.recipe, photo), photos, num_threads)
    started, images = time.perf_counter(), 0
    with tqdm(total=len(photos), desc="encoding", unit="photo", disable=not photos, dynamic_ncols=True) as bar:
        for shard, group in itertools.groupby(loaded, lambda item: item[0] // plan.photos_per_shard):
            for records in _make_shard(plan, source, shard, group, encode_pair, batch_size, bar):
                images += records
                bar.set_postfix_str(f"{images / (time.perf_counter() - started):.1f} images/s", refresh=False)


def _make_shard(plan, source, shard, loaded, encode_pair, batch_size, bar) -> Iterator[int]:
    """Write one shard, and yield the number of images of each batch."""
    plan.remove_partial(shard)
    used, skipped = [], []

    def images():
        for photo, result in loaded:
            bar.update()
            if isinstance(result, UnusablePhoto):
                skipped.append((source.names[photo], str(result)))
                continue
            used.append(source.names[photo])
            yield from ((photo, crop, image) for crop, image in enumerate(result))

    writer, place = ShardWriter(plan.folder, plan.shard_name(shard)), itertools.count()
    for batch in batched(images(), batch_size):
        # `map_batches` fills up the last batch, so that all use one program and give the same bits.
        inputs = [np.stack([image for _, _, image in batch]), np.array([crop for _, crop, _ in batch])]
        lows, highs = jax.device_get(map_batches(encode_pair, inputs, batch_size))
        for (photo, crop, image), low, high in zip(batch, lows, highs, strict=True):
            _check_range(low, high, plan.recipe, source.names[photo])
            kept = image if plan.recipe.images else None
            writer.write(encode(plan.recipe, (shard, next(place), photo, crop), low, high, kept))
        yield len(batch)
    if used:
        entry = writer.finish()
    else:
        writer.discard()
        entry = Shard(plan.shard_name(shard), 0, 0, "")
    finished = FinishedShard(entry.name, entry.records, entry.bytes, entry.sha256, tuple(used), tuple(skipped))
    plan.finish_shard(shard, finished)


def _load(source: Photos, recipe: Recipe, photo: int) -> tuple[int, np.ndarray | UnusablePhoto]:
    try:
        with source.open(photo) as file:
            return photo, crops(load_photo(file).rgb, source.names[photo], recipe)
    except UnusablePhoto as reason:
        return photo, reason
    except OSError as error:
        return photo, UnusablePhoto(error.strerror or type(error).__name__)


def _check_range(low, high, recipe, name):
    largest = max(np.abs(low).max(), np.abs(high).max())
    if not largest <= float(jnp.finfo(DTYPES[recipe.dtype]).max):
        raise InputError(
            f"photograph {name}: its latent reaches {largest}, which {recipe.dtype} cannot represent; "
            "set data.dtype to bfloat16, or check the first stage if the value is nan"
        )


def write_preview(info: DatasetInfo, first_stage: FirstStage) -> None:
    """Write preview.png: a few decoded pairs, low-res left and high-res right."""
    pairs = spread_records(info, max(1, min(PREVIEW_PAIRS, PREVIEW_HEIGHT // info.high_res)))
    decoded = (
        to_uint8(np.asarray(first_stage.decode(first_stage.spec.scale(jnp.asarray(pairs[name], jnp.float32)))))
        for name in ("low", "high")
    )
    rows = [list(row) for row in zip(*decoded, strict=True)]
    write_png(str(info.folder / "preview.png"), grid(rows, ["low-res", "high-res"]))


def precompute(
    source: Photos,
    recipe: Recipe,
    first_stage: FirstStage,
    out: pathlib.Path,
    *,
    process_index: int = 0,
    process_count: int = 1,
    records_per_shard: int = 1024,
    batch_size: int = 8,
    num_threads: int = 4,
) -> DatasetInfo | None:
    """Write the missing shards of this process, and dataset.json when no shard is missing.

    Args:
        source: photographs.
        recipe: recipe of the pairs.
        first_stage: autoencoder of the recipe.
        out: folder of the dataset.
        process_index: number of this process. It writes shards process_index, process_index + process_count, ….
        process_count: processes that share the work; a continued run may have another number.
        records_per_shard: approximate number of pairs per shard; all crops of a photograph are in the same shard.
        batch_size: images encoded at the same time.
        num_threads: threads that decode photographs.

    Returns:
        The dataset; None if shards of other processes are missing.

    Raises:
        InputError: `out` has shards with other settings, no photograph can be used, or the disk is full.
    """
    check_share(process_index, process_count)
    plan = Plan(
        folder=out,
        recipe=recipe,
        photos=len(source.names),
        photos_per_shard=max(1, records_per_shard // max(1, recipe.crops)),
        fingerprint=source.fingerprint,
    )
    missing = missing_shards(plan, process_index, process_count)
    make_shards(plan, source, missing, make_encode(first_stage, recipe), batch_size, num_threads)
    return publish_dataset(plan, first_stage, "photographs")


def missing_shards(plan: Plan, process_index: int, process_count: int) -> list[int]:
    """Begin or continue a plan; return the shards of this process that are missing or damaged, with a progress bar.

    Raises:
        InputError: the folder has another plan.
    """
    plan.begin()
    assigned = range(process_index, plan.shards, process_count)
    checked = tqdm(assigned, desc="checking", unit="shard", leave=False, dynamic_ncols=True)
    return [shard for shard in checked if not plan.is_intact(shard)]


def publish_dataset(plan: Plan, first_stage: FirstStage, sources: str) -> DatasetInfo | None:
    """Write dataset.json and the preview, if no shard is missing; print what was made of which `sources`.

    Returns:
        The dataset; None if shards of other processes are missing.

    Raises:
        InputError: no photograph could be used.
    """
    merged = plan.merge()
    if merged is None:
        finished = sum(plan.finished_shard(shard) is not None for shard in range(plan.shards))
        print(f"{finished} of {plan.shards} shards are finished; the last process to finish writes dataset.json")
        return None
    info, skipped = merged
    write_preview(info, first_stage)
    print(f"{info.records} pairs of {info.photos} {sources} in {plan.folder}; see {plan.folder / 'preview.png'}")
    _print_skipped(skipped, plan.folder)
    return info
