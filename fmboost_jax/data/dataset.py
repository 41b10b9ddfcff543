"""What a folder of latent pairs holds: `dataset.json`, and how it is held against a config.

dataset.json               recipe, number of photos and records, size and SHA-256 of each shard
shards/00000.array_record  the pairs (`fmboost_jax.data.records`)
shards/00000.json          the shard's photos by name, and those skipped with the reason
preview.png                a few pairs, decoded: low-res left, high-res right
plan.json                  recipe and photos that the folder was begun with; a continued run must agree
"""

import dataclasses
import json
import os
import pathlib
import re

import ml_dtypes
import numpy as np

from fmboost_jax.configuration import from_mapping, require_at_least
from fmboost_jax.errors import InputError
from fmboost_jax.files import read_json
from fmboost_jax.flow.coupling import UPSAMPLINGS
from fmboost_jax.models.first_stage import FirstStage, LatentSpec
from fmboost_jax.registry import check_name

FORMAT = 2  # of the files and of how records are made; 1 had low-res images without antialiasing
LOW_RES_SOURCES = ("pixels", "latents", "mixed")
DTYPES = {"float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
# Fields of a config's `data` that a dataset must have, too.
COMPARED = ("high_res", "low_res", "upsampling", "low_res_source", "dtype")
SHARD_NAME = re.compile(r"shards/(\d{5,})\.array_record")
REDO = "run the dataset's precompute command again, it redoes damaged shards"


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Section `data` of a config: where the latent pairs are, how they are made and read.

    Attributes:
        dir: folder that precompute wrote.
        low_res, high_res, upsampling, low_res_source, crops, crop_scale, dtype: see `Recipe`, which checks them.
        num_threads: threads that read; 0 reads in the calling thread.
        prefetch: batches read ahead.
    """

    dir: str | None = None
    low_res: int = 512
    high_res: int = 1024
    upsampling: str = "psu"
    low_res_source: str = "pixels"
    crops: int = 0
    crop_scale: float = 1.0
    dtype: str = "float16"
    num_threads: int = 4
    prefetch: int = 8

    def __post_init__(self):
        require_at_least("data.", self, num_threads=0, prefetch=0)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How photographs became latent pairs. Whatever differs here makes other records.

    Attributes:
        first_stage: kind of the autoencoder: "identity", "kl" or "tiny".
        first_stage_path: where its weights came from; "" for identity.
        channels: latent channels.
        downsampling: image pixels per latent position and axis.
        scaling_factor: scaled = (stored − shift_factor) · scaling_factor.
        shift_factor: see above.
        high_res: side of the square high-res images in pixels.
        low_res: side of the square low-res images in pixels.
        upsampling: "psu": low-res images are resized to `high_res` before they are encoded, both latents are of one
            size; "lsu": they are encoded as they are.
        dtype: of the stored latents, "float16" or "bfloat16".
        crops: random crops a photo; 0 means one centre crop.
        crop_scale: largest side of a random crop in units of `high_res`.
        seed: of the random crops.
        low_res_source: with PSU, the image that is resized to `high_res`. "pixels": the shrunk photograph; "latents":
            its round trip through the autoencoder, which is what a booster gets that starts from small latents;
            "mixed": pixels for a photograph's first crop, latents for its second, and so on in turn. LSU encodes the
            shrunk photograph whatever stands here. Default: "pixels".
    """

    first_stage: str
    first_stage_path: str
    channels: int
    downsampling: int
    scaling_factor: float
    shift_factor: float
    high_res: int
    low_res: int
    upsampling: str
    dtype: str
    crops: int
    crop_scale: float
    seed: int
    low_res_source: str = dataclasses.field(default="pixels", kw_only=True)

    @classmethod
    def of(cls, data: DataConfig, first_stage: FirstStage, seed: int) -> "Recipe":
        """Return the recipe of a config.

        Args:
            data: the config's section.
            first_stage: makes the latents.
            seed: of the random crops.

        Raises:
            InputError: a value that no dataset can have.
        """
        recipe = cls(
            first_stage=first_stage.kind,
            first_stage_path=first_stage.path,
            channels=first_stage.channels,
            downsampling=first_stage.downsampling,
            scaling_factor=first_stage.spec.scaling_factor,
            shift_factor=first_stage.spec.shift_factor,
            high_res=data.high_res,
            low_res=data.low_res,
            upsampling=data.upsampling,
            dtype=data.dtype,
            crops=data.crops,
            crop_scale=data.crop_scale,
            seed=seed,
            low_res_source=data.low_res_source,
        )
        recipe.validate("config.data")
        return recipe

    def validate(self, where: str) -> None:
        """Raise InputError for a value that no dataset can have; `where` names the place it was read from."""
        check_name(f"{where}: upsampling", self.upsampling, UPSAMPLINGS)
        check_name(f"{where}: low_res_source", self.low_res_source, LOW_RES_SOURCES)
        check_name(f"{where}: dtype", self.dtype, DTYPES)
        if not 0 < self.low_res < self.high_res:
            raise InputError(f"{where}: low_res {self.low_res} must lie between 0 and high_res {self.high_res}")
        if self.channels < 1 or self.downsampling < 1:
            raise InputError(f"{where}: channels {self.channels} and downsampling {self.downsampling} must be positive")
        small = self.upsampling == "lsu" or self.low_res_source != "pixels"
        encoded = {"high_res": self.high_res} | ({"low_res": self.low_res} if small else {})
        for name, pixels in encoded.items():
            if pixels % self.downsampling:
                raise InputError(
                    f"{where}: {name} {pixels} is no multiple of the first stage's downsampling {self.downsampling}"
                )
        if self.crops < 0:
            raise InputError(
                f"{where}: crops is {self.crops}, expected 0 (one centre crop) or a number of random crops"
            )
        if not 1 <= self.crop_scale < float("inf"):
            raise InputError(f"{where}: crop_scale is {self.crop_scale}, expected 1 (native resolution) or more")

    @property
    def latents(self) -> LatentSpec:
        """The autoencoder's latents that the records hold."""
        return LatentSpec(
            self.first_stage,
            self.first_stage_path,
            self.channels,
            self.downsampling,
            self.scaling_factor,
            self.shift_factor,
        )

    @property
    def high_size(self) -> int:
        """Side of the square high-res latent."""
        return self.high_res // self.downsampling

    @property
    def low_size(self) -> int:
        """Side of the square low-res latent: with PSU the high-res latent's."""
        return (self.high_res if self.upsampling == "psu" else self.low_res) // self.downsampling

    @property
    def high_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of the high-res latent."""
        return self.high_size, self.high_size, self.channels

    @property
    def low_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of the low-res latent."""
        return self.low_size, self.low_size, self.channels


@dataclasses.dataclass(frozen=True)
class Shard:
    """One file of records: its name in the dataset's folder, number of records, size and SHA-256 (hexadecimal)."""

    name: str
    records: int
    bytes: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class DatasetInfo(Recipe):
    """A finished dataset: its recipe and what came of it.

    Attributes:
        folder: of the dataset; not part of dataset.json, so that a dataset may be moved.
        photos: photographs that it was made of, the skipped ones left out.
        skipped: photographs left out; the shards' own JSON files name them.
        shards: in the records' order.
    """

    folder: pathlib.Path
    photos: int
    skipped: int
    shards: tuple[Shard, ...]

    @property
    def records(self) -> int:
        """Number of latent pairs."""
        return sum(shard.records for shard in self.shards)

    def to_json(self) -> str:
        """The text of dataset.json; the same dataset always gives the same bytes."""
        fields = dataclasses.asdict(self)
        del fields["folder"]
        shards = fields.pop("shards")
        latents = {"high_latent": self.high_shape, "low_latent": self.low_shape}
        return json.dumps({"format": FORMAT} | fields | latents | {"records": self.records, "shards": shards}, indent=2)

    @classmethod
    def read(cls, folder: str | os.PathLike | None) -> "DatasetInfo":
        """Read and check dataset.json; shards must be there with the sizes that it tells.

        Raises:
            InputError: no dataset, an unfinished one, a damaged dataset.json, a shard missing or cut short.
        """
        if not folder:
            raise InputError("data.dir is empty: set it to the folder that precompute wrote")
        folder = pathlib.Path(folder)
        path = folder / "dataset.json"
        if not folder.is_dir():
            raise InputError(f"data folder {folder} does not exist; make it with python -m fmboost_jax.precompute")
        if not path.exists():
            mend = "python -m fmboost_jax.precompute makes one"
            if (folder / "plan.json").exists():
                mend = "precompute has not finished, run its command again"
            raise InputError(f"data folder {folder} holds no dataset.json; {mend}")
        fields = read_json(path)
        if fields.get("format") != FORMAT:
            raise InputError(f"{path}: expected format {FORMAT}, found {fields.get('format')!r}; precompute again")
        shards = fields.get("shards")
        if not isinstance(shards, list) or not shards:
            raise InputError(f"{path}: expected a list of shards, found {shards!r}; precompute again")
        records = fields.get("records")
        own = {field.name for field in dataclasses.fields(cls)}
        content = {name: value for name, value in fields.items() if name in own} | {"folder": folder}
        info = from_mapping(cls, content, str(path), "precompute again")
        info.validate(str(path))
        _check_shards(info, path, records)
        return info

    def check(self, data: DataConfig, first_stage: FirstStage, state_channels: int | None = None) -> None:
        """Refuse a config that this dataset cannot serve.

        Seed and crops are not compared: a config's seed may change after the pairs were made. Nor is the first stage's
        path, since weights may lie elsewhere on another machine.

        Args:
            data: section of the config.
            first_stage: the config's.
            state_channels: of the config's network, where there is one.

        Raises:
            InputError: names every field that differs, with both values.
        """
        wanted = {
            "first_stage.kind": ("first_stage", first_stage.kind),
            **{f"data.{name}": (name, getattr(data, name)) for name in COMPARED},
            "the network's state channels": ("channels", self.channels if state_channels is None else state_channels),
        }
        for name in ("channels", "downsampling", "scaling_factor", "shift_factor"):
            wanted[f"the first stage's {name}"] = (name, getattr(first_stage.spec, name))
        differences = [
            f"{label} is {value!r} in the config and {getattr(self, name)!r} in the dataset"
            for label, (name, value) in wanted.items()
            if value != getattr(self, name)
        ]
        if differences:
            raise InputError(
                f"dataset {self.folder} does not fit the config: {'; '.join(differences)}; "
                "choose another data.dir or precompute again"
            )


def _check_shards(info: DatasetInfo, path: pathlib.Path, records: object) -> None:
    first = 0
    for number, shard in enumerate(info.shards):
        last = first + shard.records - 1
        file = info.folder / shard.name
        if shard.records < 1 or not SHARD_NAME.fullmatch(shard.name):
            raise InputError(f"{path}: shard {number} has the name {shard.name!r} and {shard.records} records; {REDO}")
        if not file.exists():
            raise InputError(f"shard {file} (records {first} to {last}) is missing; {REDO}")
        found = file.stat().st_size
        if found != shard.bytes:
            raise InputError(
                f"shard {file} (records {first} to {last}): expected {shard.bytes} bytes, found {found}; {REDO}"
            )
        first = last + 1
    if records != first:
        raise InputError(f"{path}: expected {first} records, as many as its shards hold, found {records!r}; {REDO}")
