"""The record format: one latent pair as raw little-endian bytes in an ArrayRecord shard.

    bytes 0 to 15     four uint32: shard, index in the shard, photograph, crop
    then              low-res latent  (h, w, c), float16 or bfloat16, raw
    then              high-res latent (H, W, C), same dtype
    then              high-res image  (f·H, f·W, 3), uint8, where the recipe has `images`

Shards have one record per group and no compression: float latents hardly compress, and random access then needs one
read. A record has no checksum. ArrayRecord uses Riegeli, which stores hashes of the header and the data of every group
(HighwayHash, 64 bits) and verifies them on every read; `tests/data/test_records.py` flips single bits of a file and
expects an error for each. Riegeli cannot detect a file under another file's name; the shard and index in the record
serve this purpose.
"""

import hashlib
import operator
import os
import pathlib
import threading

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from jaxtyping import Float, UInt8, UInt32

from fmboost_jax.data.dataset import DTYPES, REDO, DatasetInfo, Recipe, Shard
from fmboost_jax.errors import InputError
from fmboost_jax.files import partial_path, publish

Header = UInt32[np.ndarray, "4"]
LowLatent = Float[np.ndarray, "h w c"]
HighLatent = Float[np.ndarray, "H W c"]
HighImage = UInt8[np.ndarray, "high_res high_res 3"]

_HEADER = np.dtype("<u4")
_HEADER_BYTES = 4 * _HEADER.itemsize
_WRITER = "group_size:1,uncompressed"
_READER = "readahead_buffer_size:0,max_parallelism:0"  # for random access
_READ_BUFFER = 32768  # bytes


def record_bytes(recipe: Recipe) -> int:
    """Size of one record in bytes."""
    latents = sum(_latent_values(recipe)) * DTYPES[recipe.dtype].itemsize
    return _HEADER_BYTES + latents + int(np.prod(recipe.image_shape)) * recipe.images


def _latent_values(recipe: Recipe) -> tuple[int, int]:
    return int(np.prod(recipe.low_shape)), int(np.prod(recipe.high_shape))


def encode(
    recipe: Recipe, header: tuple[int, int, int, int], low: LowLatent, high: HighLatent, image: HighImage | None = None
) -> bytes:
    """Return a pair's bytes. Latents are rounded to the recipe's dtype.

    Args:
        recipe: recipe with the shapes and the dtype.
        header: shard, index in the shard, photograph, crop.
        low: raw low-res latent.
        high: raw high-res latent.
        image: high-res image, where `recipe.images` says so.
    """
    if (low.shape, high.shape) != (recipe.low_shape, recipe.high_shape):
        raise ValueError(f"latents {low.shape}, {high.shape}; the recipe has {recipe.low_shape}, {recipe.high_shape}")
    found = None if image is None else image.shape
    if found != (recipe.image_shape if recipe.images else None):
        raise ValueError(f"image {found}; the recipe has {recipe.image_shape if recipe.images else None}")
    dtype = DTYPES[recipe.dtype]
    arrays = [np.array(header, _HEADER), low.astype(dtype), high.astype(dtype)]
    return b"".join(array.tobytes() for array in (arrays if image is None else [*arrays, image]))


def decode(recipe: Recipe, record: bytes) -> tuple[Header, dict[str, np.ndarray]]:
    """Return views of a record.

    Returns:
        The header (shard, index in the shard, photograph, crop); the arrays by name: `low` and `high`, the raw
        latents, and `image` where `recipe.images` says so.
    """
    split, rest = _latent_values(recipe)
    latents = np.frombuffer(record, DTYPES[recipe.dtype], count=split + rest, offset=_HEADER_BYTES)
    low, high = latents[:split].reshape(recipe.low_shape), latents[split:].reshape(recipe.high_shape)
    arrays: dict[str, np.ndarray] = {"low": low, "high": high}
    if recipe.images:
        pixels = np.frombuffer(record, np.uint8, offset=_HEADER_BYTES + latents.nbytes)
        arrays["image"] = pixels.reshape(recipe.image_shape)
    return np.frombuffer(record, _HEADER, count=4), arrays


class ShardWriter:
    """Writer of one shard. The file has a temporary name until `finish`.

    A killed process leaves a `.partial` file, never an incomplete shard.
    """

    def __init__(self, folder: pathlib.Path, name: str):
        self._path, self._name, self._records = folder / name, name, 0
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._temporary = partial_path(self._path)
        self._writer = ArrayRecordWriter(str(self._temporary), _WRITER)

    def write(self, record: bytes) -> None:
        """Append one record."""
        self._writer.write(record)
        self._records += 1

    def finish(self) -> Shard:
        """Close, sync and rename the shard; return its entry for dataset.json.

        Raises:
            InputError: the disk is full, or another process writes the same shard.
        """
        try:
            self._writer.close()
        except RuntimeError as error:
            self._temporary.unlink(missing_ok=True)
            reason = str(error).split(";")[0]
            raise InputError(
                f"cannot write {self._path}: {reason}; free disk space and run the same command again"
            ) from error
        if not self._temporary.exists():
            raise InputError(f"another process writes {self._path} too; give each process its own process index")
        with open(self._temporary, "rb+") as file:
            os.fsync(file.fileno())
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            size = file.tell()
        publish(self._temporary, self._path)
        return Shard(self._name, self._records, size, digest)

    def discard(self) -> None:
        """Close and delete an unfinished shard."""
        self._writer.close()
        self._temporary.unlink()


class PairSource:
    """Random access to a dataset's records, as a source for grain. Several threads may read at the same time."""

    def __init__(self, info: DatasetInfo):
        self._info = info
        self._starts = np.cumsum([0] + [shard.records for shard in info.shards])
        self._readers: list[ArrayRecordReader | None] = [None] * len(info.shards)
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"PairSource({str(self._info.folder)!r})"

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index) -> dict[str, np.ndarray | np.uint32]:
        """Return pair `index`: {"record": uint32, "low": (h, w, c), "high": (H, W, C)}, raw, in the stored dtype.

        A dataset with images has "image": (f·H, f·W, 3), uint8, too.

        Raises:
            InputError: the record or its shard is damaged; the message has the file and the record.
            IndexError: no such record.
        """
        _, arrays = self._record(operator.index(index))
        return {"record": np.uint32(index), **arrays}

    def origin(self, index: int) -> tuple[int, int]:
        """Numbers of the photograph and of its crop that pair number `index` was made of; errors as above."""
        header, _ = self._record(index)
        return int(header[2]), int(header[3])

    def _record(self, index: int) -> tuple[Header, dict[str, np.ndarray]]:
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        place = index - int(self._starts[number])
        try:
            data = self._reader(number).read([place])[0]
        except RuntimeError as error:
            raise self._damaged(number, index, f"cannot be read ({str(error).split(';')[0]})") from error
        if len(data) != record_bytes(self._info):
            raise self._damaged(number, index, f"has {len(data)} bytes, expected {record_bytes(self._info)}")
        header, arrays = decode(self._info, data)
        shard = int(pathlib.PurePosixPath(self._info.shards[number].name).stem)
        if header[:2].tolist() != [shard, place]:
            raise self._damaged(number, index, f"has the header of record {header[1]} of shard {header[0]:05d}")
        return header, arrays

    def _reader(self, number: int) -> ArrayRecordReader:
        with self._lock:
            reader = self._readers[number]
            if reader is None:
                path = str(self._info.folder / self._info.shards[number].name)
                reader = ArrayRecordReader(path, options=_READER, file_reader_buffer_size=_READ_BUFFER)
                count, expected = reader.num_records(), self._info.shards[number].records
                if count != expected:
                    raise RuntimeError(f"the index of the file has {count} records, expected {expected}")
                self._readers[number] = reader
            return reader

    def _damaged(self, number: int, index: int, what: str) -> InputError:
        shard = self._info.folder / self._info.shards[number].name
        place = index - int(self._starts[number])
        return InputError(f"shard {shard}: record {place} (record {index} of the dataset) {what}; {REDO}")
