"""Metadata of a dataset of latent pairs, and its comparison with a config.

dataset.json               recipe, number of photographs and records, size and SHA-256 of each shard
shards/00000.array_record  the pairs (`fmboost_jax.data.records`)
shards/00000.json          names of the shard's photographs, and of skipped ones with the reason
preview.png                a few decoded pairs: low-res left, high-res right
plan.json                  recipe and photographs of the first run; a continued run must have the same
"""

import dataclasses
import json
import os
import pathlib
import re
from typing import Any

import ml_dtypes
import numpy as np

from fmboost_jax.configuration import from_mapping, require_at_least
from fmboost_jax.errors import InputError, shown
from fmboost_jax.files import local_path, read_json
from fmboost_jax.flow.coupling import PSU_FILTERS, UPSAMPLINGS, Coupling
from fmboost_jax.models.first_stage import FirstStage, LatentSpec
from fmboost_jax.registry import check_name

FORMAT = 2  # version of files and records; version 1 had low-res images without antialiasing
LOW_RES_SOURCES = ("pixels", "latents", "mixed")
DTYPES = {"float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
# Fields in which a dataset must agree with section `data` of a config.
COMPARED = ("high_res", "low_res", "upsampling", "low_res_source", "dtype")
SHARD_NAME = re.compile(r"shards/(\d{5,})\.array_record")
REDO = "run the dataset's precompute command again; it replaces damaged shards"


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Section `data` of a config: the latent pairs, and how they are made and read.

    Attributes:
        dir: folder of a dataset that precompute wrote.
        low_res, high_res, upsampling, low_res_source, crops, crop_scale, dtype, images: see `Recipe`, which checks
            them.
        num_threads: reading threads; 0 reads in the calling thread.
        prefetch: batches read in advance.
    """

    dir: str | None = None
    low_res: int = 512
    high_res: int = 1024
    upsampling: str = "psu"
    low_res_source: str = "pixels"
    crops: int = 0
    crop_scale: float = 1.0
    dtype: str = "float16"
    images: bool = False
    num_threads: int = 4
    prefetch: int = 8

    def __post_init__(self):
        require_at_least("data.", self, num_threads=0, prefetch=0)


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A flow whose results are the high-res latents of a dataset (reflow), from noise that each record keeps.

    Attributes:
        weights: fingerprint of the flow and its autoencoder, see `Booster.fingerprint`.
        method, steps: of its solver.
        source: its coupling; a network that is trained on the pairs has the same.
        draws: records for each latent pair of the dataset that it boosted, each with its own noise.
        seed: seed of the noise. Record k has the key `fold_in(key(seed), k)`.
    """

    weights: str
    method: str
    steps: int
    source: Coupling
    draws: int
    seed: int

    def __post_init__(self):
        require_at_least("teacher.", self, steps=1, draws=1, seed=0)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How latent pairs are made from photographs. Equal recipes and photographs give equal records.

    Attributes:
        first_stage: kind of the autoencoder, for example "identity", "kl" or "tiny".
        first_stage_path: folder or hub id of its weights; "" for identity.
        channels: latent channels.
        downsampling: image pixels per latent position, along each axis.
        scaling_factor: scaled = (stored − shift_factor) · scaling_factor.
        shift_factor: see scaling_factor.
        high_res: side of the square high-res images in pixels.
        low_res: side of the square low-res images in pixels.
        upsampling: "psu": low-res images are resized to `high_res` bilinearly and then encoded, so both latents have
            the same size; "psu_bicubic": the same, bicubically; "lsu": low-res images are encoded at their own size.
        dtype: dtype of the stored latents, "float16" or "bfloat16".
        crops: random crops per photograph; 0 means one centre crop.
        crop_scale: largest side of a random crop, in units of `high_res`.
        seed: seed of the random crops.
        low_res_source: with PSU, the image that is resized to `high_res`. "pixels": the shrunk photograph; "latents":
            the shrunk photograph encoded and decoded, which is the input of a booster of small latents; "mixed":
            "pixels" for a photograph's first crop, "latents" for its second, and so on. LSU always encodes the shrunk
            photograph. Default: "pixels".
        inversion_steps: of the encoder, see `fmboost_jax.models.first_stage.invert_decoder`. Default: 0.
        images: whether each record also has the high-res image, uint8: what terms on images are then compared with, see
            `fmboost_jax.training.finish`. Default: False.
        teacher: what made the high-res latents, in place of the encoder. Default: None.
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
    inversion_steps: int = dataclasses.field(default=0, kw_only=True)
    images: bool = dataclasses.field(default=False, kw_only=True)
    teacher: Teacher | None = dataclasses.field(default=None, kw_only=True)

    @classmethod
    def of(cls, data: DataConfig, first_stage: FirstStage, seed: int) -> "Recipe":
        """Return the recipe of a config.

        Args:
            data: section `data` of the config.
            first_stage: autoencoder that encodes the images.
            seed: seed of the random crops.

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
            inversion_steps=first_stage.spec.inversion_steps,
            images=data.images,
        )
        recipe.validate("config.data")
        return recipe

    def validate(self, where: str) -> None:
        """Raise InputError for a value that no dataset can have. Its message begins with `where`, the origin."""
        check_name(f"{where}: upsampling", self.upsampling, UPSAMPLINGS)
        check_name(f"{where}: low_res_source", self.low_res_source, LOW_RES_SOURCES)
        check_name(f"{where}: dtype", self.dtype, DTYPES)
        if not 0 < self.low_res < self.high_res:
            raise InputError(f"{where}: low_res {self.low_res} must be between 0 and high_res {self.high_res}")
        if self.channels < 1 or self.downsampling < 1:
            raise InputError(f"{where}: channels {self.channels} and downsampling {self.downsampling} must be positive")
        small = self.upsampling == "lsu" or self.low_res_source != "pixels"
        encoded = {"high_res": self.high_res} | ({"low_res": self.low_res} if small else {})
        for name, pixels in encoded.items():
            if pixels % self.downsampling:
                raise InputError(
                    f"{where}: {name} {pixels} is not a multiple of the first stage's downsampling {self.downsampling}"
                )
        if self.crops < 0:
            raise InputError(
                f"{where}: crops is {self.crops}, expected 0 (one centre crop) or a number of random crops"
            )
        if not 1 <= self.crop_scale < float("inf"):
            raise InputError(f"{where}: crop_scale is {self.crop_scale}, expected 1 (native resolution) or more")

    @property
    def latents(self) -> LatentSpec:
        """Facts of the latents in the records."""
        return LatentSpec(
            self.first_stage,
            self.first_stage_path,
            self.channels,
            self.downsampling,
            self.scaling_factor,
            self.shift_factor,
            inversion_steps=self.inversion_steps,
        )

    @property
    def pixel_filter(self) -> str | None:
        """Filter by which low-res images are enlarged before they are encoded; None for "lsu"."""
        return PSU_FILTERS.get(self.upsampling)

    @property
    def high_size(self) -> int:
        """Side of the square high-res latent."""
        return self.high_res // self.downsampling

    @property
    def low_size(self) -> int:
        """Side of the square low-res latent; with PSU it equals that of the high-res latent."""
        return (self.high_res if self.pixel_filter else self.low_res) // self.downsampling

    @property
    def high_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of the high-res latent."""
        return self.high_size, self.high_size, self.channels

    @property
    def low_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of the low-res latent."""
        return self.low_size, self.low_size, self.channels

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, 3) of the high-res image."""
        return self.high_res, self.high_res, 3


@dataclasses.dataclass(frozen=True)
class Shard:
    """A file of records: name in the dataset's folder, number of records, size in bytes and hexadecimal SHA-256."""

    name: str
    records: int
    bytes: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class DatasetInfo(Recipe):
    """A finished dataset.

    Attributes:
        folder: folder of the dataset. It is not part of dataset.json, so a dataset may be moved.
        photos: photographs with records; with a teacher, the pairs that it boosted.
        skipped: photographs without; the JSON files of the shards name them.
        shards: shards in the order of the records.
    """

    folder: pathlib.Path
    photos: int
    skipped: int
    shards: tuple[Shard, ...]

    @property
    def recipe(self) -> Recipe:
        """Recipe of the pairs."""
        fields: dict[str, Any] = {field.name: getattr(self, field.name) for field in dataclasses.fields(Recipe)}
        return Recipe(**fields)

    @property
    def records(self) -> int:
        """Number of latent pairs."""
        return sum(shard.records for shard in self.shards)

    def to_json(self) -> str:
        """Return the text of dataset.json. Equal datasets give equal bytes."""
        fields = dataclasses.asdict(self)
        del fields["folder"]
        for name in ("inversion_steps", "images", "teacher"):
            if not fields[name]:
                del fields[name]
        shards = fields.pop("shards")
        latents = {"high_latent": self.high_shape, "low_latent": self.low_shape}
        return json.dumps({"format": FORMAT} | fields | latents | {"records": self.records, "shards": shards}, indent=2)

    @classmethod
    def read(cls, folder: str | os.PathLike | None) -> "DatasetInfo":
        """Read dataset.json; check it, and the sizes of the shards.

        Raises:
            InputError: no dataset, an unfinished one, a damaged dataset.json, a missing or truncated shard.
        """
        if not folder:
            raise InputError("data.dir is empty: set it to the folder that precompute wrote")
        folder = pathlib.Path(local_path(folder, "data folder"))
        path = folder / "dataset.json"
        if not folder.is_dir():
            raise InputError(f"data folder {folder} does not exist; make it with python -m fmboost_jax.precompute")
        if not path.exists():
            remedy = "python -m fmboost_jax.precompute makes one"
            if (folder / "plan.json").exists():
                remedy = "precompute has not finished, run its command again"
            raise InputError(f"data folder {folder} has no dataset.json; {remedy}")
        fields = read_json(path)
        if fields.get("format") != FORMAT:
            raise InputError(f"{path}: expected format {FORMAT}, found {shown(fields.get('format'))}; precompute again")
        shards = fields.get("shards")
        if not isinstance(shards, list) or not shards:
            raise InputError(f"{path}: expected a list of shards, found {shown(shards)}; precompute again")
        records = fields.get("records")
        names = {field.name for field in dataclasses.fields(cls)}
        content = {name: value for name, value in fields.items() if name in names} | {"folder": folder}
        info = from_mapping(cls, content, str(path), "precompute again")
        info.validate(str(path))
        _check_shards(info, path, records)
        return info

    def check(self, data: DataConfig, first_stage: FirstStage, state_channels: int | None = None) -> None:
        """Check that this dataset fits a config.

        Seed and crops may differ: a config's seed may change after the pairs were made. A dataset may have images that
        the config does not ask for. The path of the first stage may differ too, since another machine may have the
        weights in another folder.

        Args:
            data: section `data` of the config.
            first_stage: first stage of the config.
            state_channels: state channels of the config's network. Default: not compared.

        Raises:
            InputError: some fields differ; the message has each of them with both values.
        """
        wanted = {
            "first_stage.kind": ("first_stage", first_stage.kind),
            **{f"data.{name}": (name, getattr(data, name)) for name in COMPARED},
            "the network's state channels": ("channels", self.channels if state_channels is None else state_channels),
        }
        if data.images:
            wanted["data.images"] = ("images", True)
        for name in ("channels", "downsampling", "scaling_factor", "shift_factor", "inversion_steps"):
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
            raise InputError(
                f"{path}: shard {number} has the name {shown(shard.name)} and {shard.records} records; {REDO}"
            )
        if not file.exists():
            raise InputError(f"shard {file} (records {first} to {last}) is missing; {REDO}")
        size = file.stat().st_size
        if size != shard.bytes:
            raise InputError(
                f"shard {file} (records {first} to {last}): expected {shard.bytes} bytes, found {size}; {REDO}"
            )
        first = last + 1
    if records != first:
        found = shown(records)
        raise InputError(f"{path}: expected {first} records, the sum over its shards, found {found}; {REDO}")
