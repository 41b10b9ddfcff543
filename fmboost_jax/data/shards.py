"""Which photograph goes into which shard, which shards are finished, and the merge into dataset.json.

Shard k is made of photographs k·n to (k + 1)·n − 1 and nothing else, n being the same for all. So any process can make
a shard at any time, a second time too, always with the same bytes: an interrupted run goes on with the shards that are
missing, and it does not matter how many processes shared the work.
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
    """Content of a shard's JSON file: the shard, and its photographs.

    Attributes:
        photos: names of the photographs in it, in the records' order.
        skipped: (name, reason) of those left out. Without photographs there is no shard file.
    """

    photos: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]


@dataclasses.dataclass(frozen=True)
class Plan:
    """The work in a folder; plan.json keeps it, so that a continued run makes the same dataset.

    Attributes:
        folder: folder of the dataset.
        recipe: how pairs are made.
        photos: number of photographs.
        photos_per_shard: photographs to a shard.
        fingerprint: of the photographs' names and sizes.
    """

    folder: pathlib.Path
    recipe: Recipe
    photos: int
    photos_per_shard: int
    fingerprint: str

    def begin(self) -> None:
        """Write plan.json, or hold this plan against the one that is there.

        Raises:
            InputError: the folder was begun with another plan; names what differs.
        """
        path = self.folder / "plan.json"
        fields = dataclasses.asdict(self.recipe) | {
            "format": FORMAT,
            "photos": self.photos,
            "photos_per_shard": self.photos_per_shard,
            "fingerprint": self.fingerprint,
        }
        if path.exists():
            # A plan of before there was a choice of it.
            before = {"low_res_source": "pixels"} | read_json(path)
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
                    "go on with those, or choose another output folder"
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

    def finish_shard(self, shard: int, finished: FinishedShard) -> None:
        """Write a shard's JSON file; from here on it counts as finished."""
        write_atomically(self._json(shard), json.dumps(dataclasses.asdict(finished), indent=1).encode())

    def finished_shard(self, shard: int) -> FinishedShard | None:
        """A shard that was finished before, or None."""
        path = self._json(shard)
        return from_mapping(FinishedShard, read_json(path), str(path), "precompute again") if path.exists() else None

    def is_intact(self, shard: int) -> bool:
        """Whether a shard is finished and its file still has its checksum."""
        try:
            finished = self.finished_shard(shard)
        except InputError:
            return False
        if finished is None or finished.records == 0:
            return finished is not None
        path = self.folder / finished.name
        return path.exists() and path.stat().st_size == finished.bytes and _sha256(path) == finished.sha256

    def merge(self) -> tuple[DatasetInfo, list[tuple[str, str]]] | None:
        """Write dataset.json if all shards are finished; returns the dataset and (name, reason) of skipped photographs.

        Every process calls it after its last shard. Whichever finishes last sees all shards finished; if several do,
        they write the same bytes.

        Raises:
            InputError: no photograph could be used.
        """
        finished = []
        for shard in range(self.shards):
            found = self.finished_shard(shard)
            if found is None:
                return None
            finished.append(found)
        skipped = [photo for shard in finished for photo in shard.skipped]
        used = [shard for shard in finished if shard.records]
        if not used:
            name, reason = skipped[0]
            raise InputError(f"none of the {self.photos} photographs can be used; the first, {name}: {reason}")
        info = DatasetInfo(
            **dataclasses.asdict(self.recipe),
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
