"""Division of the photographs into shards, the finished shards, and the merge into dataset.json.

Shard k depends on photographs k·n to (k + 1)·n − 1 only, with the same n for all shards. Any process can write it at
any time, again if needed, with the same bytes. An interrupted run continues with the missing shards, and the number of
processes does not change the result.
"""

import dataclasses
import hashlib
import json
import pathlib

from fmboost_jax.configuration import from_mapping
from fmboost_jax.data.dataset import FORMAT, DatasetInfo, Recipe, Shard
from fmboost_jax.errors import InputError
from fmboost_jax.files import read_json, write_atomically


@dataclasses.dataclass(frozen=True)
class FinishedShard(Shard):
    """Content of a shard's JSON file: the shard and its photographs.

    Attributes:
        photos: names of its photographs, in the order of the records. A shard without photographs has no file.
        skipped: (name, reason) of each photograph that was skipped.
    """

    photos: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]


@dataclasses.dataclass(frozen=True)
class Plan:
    """Plan of a dataset, saved in plan.json so that a continued run writes the same dataset.

    Attributes:
        folder: folder of the dataset.
        recipe: recipe of the pairs.
        photos: number of photographs.
        photos_per_shard: photographs per shard.
        fingerprint: hash of the photographs' names and sizes.
    """

    folder: pathlib.Path
    recipe: Recipe
    photos: int
    photos_per_shard: int
    fingerprint: str

    def begin(self) -> None:
        """Write plan.json, or compare this plan with an existing one.

        Raises:
            InputError: the folder has another plan; the message has the differences.
        """
        path = self.folder / "plan.json"
        fields = dataclasses.asdict(self.recipe) | {
            "format": FORMAT,
            "photos": self.photos,
            "photos_per_shard": self.photos_per_shard,
            "fingerprint": self.fingerprint,
        }
        if path.exists():
            # Plans of earlier versions lack the fields that were added since, which have defaults.
            added = {f.name: f.default for f in dataclasses.fields(Recipe) if f.default is not dataclasses.MISSING}
            before = added | read_json(path)
            differences = [
                f"{name} was {before.get(name)!r} and is now {value!r}"
                for name, value in fields.items()
                if name != "fingerprint" and before.get(name) != value
            ]
            if before.get("fingerprint") != self.fingerprint:
                differences.append("names or sizes of the photographs have changed")
            if differences:
                raise InputError(
                    f"{self.folder} was begun with other settings or photographs: {'; '.join(differences)}; "
                    "set them back, or choose another output folder"
                )
            return
        self.shard_folder.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(fields, indent=2).encode())

    @property
    def shard_folder(self) -> pathlib.Path:
        """Folder of the shards and their JSON files."""
        return self.folder / "shards"

    @property
    def shards(self) -> int:
        """Number of shards."""
        return -(-self.photos // self.photos_per_shard)

    def shard_photos(self, shard: int) -> range:
        """Numbers of the photographs of a shard."""
        first = shard * self.photos_per_shard
        return range(first, min(first + self.photos_per_shard, self.photos))

    @staticmethod
    def shard_name(shard: int) -> str:
        """Name of a shard's file in the dataset's folder."""
        return f"shards/{shard:05d}.array_record"

    def remove_partial(self, shard: int) -> None:
        """Delete partial files of a shard that killed processes left."""
        for path in self.shard_folder.glob(f".{shard:05d}.*.partial"):
            path.unlink(missing_ok=True)

    def finish_shard(self, shard: int, finished: FinishedShard) -> None:
        """Write a shard's JSON file, which marks it as finished."""
        write_atomically(self._json(shard), json.dumps(dataclasses.asdict(finished), indent=1).encode())

    def finished_shard(self, shard: int) -> FinishedShard | None:
        """Return the content of a finished shard's JSON file, or None."""
        path = self._json(shard)
        return from_mapping(FinishedShard, read_json(path), str(path), "precompute again") if path.exists() else None

    def is_intact(self, shard: int) -> bool:
        """Return whether a shard is finished and its file has the right checksum."""
        try:
            finished = self.finished_shard(shard)
        except InputError:
            return False
        if finished is None or finished.records == 0:
            return finished is not None
        path = self.folder / finished.name
        return path.exists() and path.stat().st_size == finished.bytes and _sha256(path) == finished.sha256

    def merge(self) -> tuple[DatasetInfo, list[tuple[str, str]]] | None:
        """Write dataset.json if all shards are finished; return the dataset and (name, reason) of skipped photographs.

        Every process calls it after its last shard. The last one finds all shards finished. If several do, they write
        the same bytes.

        Raises:
            InputError: no photograph could be used.
        """
        finished = []
        for shard in range(self.shards):
            entry = self.finished_shard(shard)
            if entry is None:
                return None
            finished.append(entry)
        skipped = [photo for shard in finished for photo in shard.skipped]
        used = [shard for shard in finished if shard.records]
        if not used:
            name, reason = skipped[0]
            raise InputError(f"none of the {self.photos} photographs can be used; the first, {name}: {reason}")
        info = DatasetInfo(
            **{field.name: getattr(self.recipe, field.name) for field in dataclasses.fields(self.recipe)},
            folder=self.folder,
            photos=self.photos - len(skipped),
            skipped=len(skipped),
            shards=tuple(Shard(s.name, s.records, s.bytes, s.sha256) for s in used),
        )
        write_atomically(self.folder / "dataset.json", info.to_json().encode())
        return info, skipped

    def _json(self, shard: int) -> pathlib.Path:
        return self.folder / pathlib.Path(self.shard_name(shard)).with_suffix(".json")


def _sha256(path: pathlib.Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
