"""Reading and writing: batches of latent pairs, checkpoints, latent pairs made of photographs; each with its peer.

    python -m bench data
    python -m bench checkpoints
    python -m bench precompute

The peers are what a PyTorch project would use: a `DataLoader` with two worker processes over the same records, read by
the same code; `torch.save` of the same tensors, made as durable (written aside, fsync, renamed), and `torch.load`, each
in a process that has just begun, as a restarted run is; a loop that decodes the same crops of the same photographs and
encodes them with diffusers' AutoencoderKL.
"""

import dataclasses
import functools
import itertools
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable

import numpy as np

from bench.alternation import Child, Implementation, Result

RECORDS, BATCH = 2048, 32
LOADERS = 2  # threads of ours, processes of the peer
CROPS, CROP_SIZE = 4, 256  # of each photograph


def reading(folder: pathlib.Path) -> list[Implementation]:
    """Who reads one epoch of the records in `folder`, in a random order; ours first."""
    return [
        Implementation("fmboost_jax", functools.partial(read_ours, folder)),
        Implementation("PyTorch DataLoader, 2 workers", functools.partial(read_torch, folder)),
    ]


def write_records(folder: pathlib.Path) -> None:
    """Records of two 128×128×4 float16 latents, 537 MB in all."""
    from bench.data import write_dataset

    info = write_dataset(folder, RECORDS)
    (folder / "dataset.json").write_text(info.to_json())


def read_ours(folder: pathlib.Path):
    """`fmboost_jax.data.pipeline.batches`, endless."""
    from fmboost_jax.data.dataset import DatasetInfo
    from fmboost_jax.data.pipeline import batches

    stream = iter(batches(DatasetInfo.read(folder), batch_size=BATCH, seed=0, num_threads=LOADERS))
    return lambda: [next(stream)["high"].sum() for _ in range(RECORDS // BATCH)]


def read_torch(folder: pathlib.Path):
    """A DataLoader whose workers stay from epoch to epoch."""
    import torch

    loader = torch.utils.data.DataLoader(
        _Pairs(folder), BATCH, shuffle=True, num_workers=LOADERS, persistent_workers=True, prefetch_factor=4
    )
    return lambda: [batch["high"].numpy().sum() for batch in loader]


class _Pairs:
    """The records as a map-style dataset; every worker opens its own readers."""

    def __init__(self, folder: pathlib.Path):
        self._folder, self._source = folder, None

    def __len__(self) -> int:
        return RECORDS

    def __getitem__(self, number: int) -> dict:
        from fmboost_jax.data.dataset import DatasetInfo
        from fmboost_jax.data.records import PairSource

        if self._source is None:
            self._source = PairSource(DatasetInfo.read(self._folder))
        pair = self._source[number]
        return {name: np.array(pair[name]) for name in ("low", "high")}


def saving(weights: pathlib.Path, records: pathlib.Path) -> list[Implementation]:
    """Who saves a run's state, durably; ours first."""
    return [
        Implementation("fmboost_jax (Orbax)", functools.partial(save_ours, weights, records, _folder(weights))),
        Implementation("torch.save, fsync, rename", functools.partial(save_torch, weights, _folder(weights))),
    ]


def restoring(weights: pathlib.Path, records: pathlib.Path, *, repeats: int) -> list[Result]:
    """Measure who restores it, ours first; "first call" is what a process takes to begin, without the restore."""
    folder = _folder(weights)
    for save in (
        functools.partial(save_ours, weights, records, folder),
        functools.partial(save_torch, weights, folder),
    ):
        with Child(Implementation("saving", save)) as child:
            child.prepare()
            if child.failure:
                raise RuntimeError(child.failure)
    restore = {
        "fmboost_jax (Orbax)": functools.partial(restore_ours, weights, records, folder),
        "torch.load": functools.partial(restore_torch, folder),
    }
    rows: dict[str, list[tuple[float, ...]]] = {name: [] for name in restore}
    for _ in range(repeats):
        for name, prepare in restore.items():
            with Child(Implementation(name, prepare)) as child:
                rows[name].append((child.prepare(), child.ask("run"), child.ask("peak"), child.ask("passing")))
                if child.failure:
                    raise RuntimeError(child.failure)
    ours = next(iter(rows.values()))
    results = []
    for name, own in rows.items():
        first, seconds, peak, passing = map(statistics.median, zip(*own, strict=True))
        ratio = seconds / statistics.median(row[1] for row in ours)
        results.append(Result(name, seconds, ratio, first, peak, passing))
    return results


def _four_times(tensors: dict) -> dict:
    """Parameters, their average, Adam's two moments."""
    return {name: dict(tensors) for name in ("parameters", "ema", "mu", "nu")}


def save_ours(weights: pathlib.Path, records: pathlib.Path, folder: pathlib.Path):
    """`Checkpoints.save` with data iterator and config, and the wait until it has its name."""
    checkpoints, iterator = _ours(records, folder)
    import jax
    from safetensors.numpy import load_file

    arrays = jax.tree.map(lambda leaf: jax.device_put(np.array(leaf)), _four_times(load_file(weights)))
    state, steps = _state(jax.numpy.zeros((), "int32"), arrays), itertools.count(1)

    def save():
        checkpoints.save(next(steps), state, iterator, {})
        checkpoints.wait()

    return save


def restore_ours(weights: pathlib.Path, records: pathlib.Path, folder: pathlib.Path):
    """The state back in the devices' memory, the iterator where it stood."""
    checkpoints, iterator = _ours(records, folder)
    import jax
    from safetensors import safe_open

    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    with safe_open(weights, "numpy") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 - not a mapping
    arrays = {name: jax.ShapeDtypeStruct(shape, "float32", sharding=sharding) for name, shape in shapes.items()}
    abstract = _state(jax.ShapeDtypeStruct((), "int32", sharding=sharding), _four_times(arrays))
    return _once(lambda: jax.block_until_ready(checkpoints.restore(checkpoints.latest, abstract, iterator)))


def _ours(records: pathlib.Path, folder: pathlib.Path):
    """Checkpoints in a folder and a data iterator, after what `fmboost_jax.train` begins with."""
    from fmboost_jax.data.dataset import DatasetInfo
    from fmboost_jax.data.pipeline import batches
    from fmboost_jax.runtime.memory import keep_freed_memory
    from fmboost_jax.training.checkpoints import Checkpoints

    keep_freed_memory()
    iterator = iter(batches(DatasetInfo.read(records), batch_size=BATCH, seed=0))
    next(iterator)
    return Checkpoints(str(folder), keep=1), iterator


def _state(step, arrays: dict):
    from fmboost_jax.training.state import TrainState

    moments = {name: arrays[name] for name in ("mu", "nu")}
    return TrainState(step, arrays["parameters"], arrays["ema"], moments)


def _once(action: Callable[[], object]) -> Callable[[], object]:
    """A function whose first call, which belongs to building, does nothing, and whose second call acts."""
    calls = iter((lambda: None, action))
    return lambda: next(calls)()


def save_torch(weights: pathlib.Path, folder: pathlib.Path):
    """Written aside, on disk, renamed."""
    import torch
    from safetensors.torch import load_file

    path = folder / "state.pt"
    tensors = load_file(weights)
    state = {name: {key: leaf.clone() for key, leaf in part.items()} for name, part in _four_times(tensors).items()}

    def save():
        with open(path.with_suffix(".partial"), "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        path.with_suffix(".partial").replace(path)

    return save


def restore_torch(folder: pathlib.Path):
    """Every tensor read, none left to be mapped later."""
    import torch

    return _once(lambda: torch.load(folder / "state.pt", weights_only=True))


def _folder(beside: pathlib.Path) -> pathlib.Path:
    """A new folder on the same disk, removed with the benchmark's folder."""
    return pathlib.Path(tempfile.mkdtemp(dir=beside.parent))


def precomputing(photos: pathlib.Path, autoencoder: pathlib.Path) -> list[Implementation]:
    """Who makes latent pairs of photographs; ours first."""
    return [
        Implementation("fmboost_jax", functools.partial(precompute_ours, photos, autoencoder)),
        Implementation("PyTorch loop, diffusers", functools.partial(precompute_torch, photos, autoencoder)),
        Implementation(
            "PyTorch loop, diffusers, channels last", functools.partial(precompute_torch, photos, autoencoder, True)
        ),
    ]


def write_photos(folder: pathlib.Path) -> pathlib.Path:
    """The demo's photographs, scikit-image's and scikit-learn's; the folder of those to train on."""
    tool = pathlib.Path(__file__).parents[1] / "tools" / "demo_photos.py"
    subprocess.run([sys.executable, str(tool), str(folder)], check=True, stdout=subprocess.DEVNULL)
    return folder / "train"


def _recipe():
    from bench.data import RECIPE

    return dataclasses.replace(RECIPE, high_res=CROP_SIZE, low_res=CROP_SIZE // 2, crops=CROPS)


def precompute_ours(photos: pathlib.Path, autoencoder: pathlib.Path):
    """The shards of `fmboost_jax.precompute` in a new folder, without the preview, which the peers lack."""
    from fmboost_jax.data.pairs import make_encode, make_shards
    from fmboost_jax.data.shards import Plan
    from fmboost_jax.data.sources import FolderPhotos
    from fmboost_jax.interop.autoencoders import load_first_stage

    source, recipe = FolderPhotos(photos), _recipe()
    encode = make_encode(load_first_stage("kl", str(autoencoder)), recipe)

    def run():
        folder = _folder(photos)
        plan = Plan(folder / "data", recipe, len(source.names), len(source.names), source.fingerprint)
        plan.begin()
        make_shards(plan, source, [0], encode, batch_size=8, num_threads=LOADERS)
        info, _ = plan.merge()
        shutil.rmtree(folder)
        return info.records

    return run


def precompute_torch(photos: pathlib.Path, autoencoder: pathlib.Path, channels_last: bool = False):
    """The same pairs by a PyTorch loop, saved as one file."""
    import torch
    from diffusers import AutoencoderKL
    from torch.nn.functional import interpolate

    from fmboost_jax.data.crops import crops
    from fmboost_jax.data.sources import FolderPhotos
    from fmboost_jax.images.photos import load_photo

    layout = torch.channels_last if channels_last else torch.contiguous_format
    model, source = AutoencoderKL.from_pretrained(autoencoder).to(memory_format=layout), FolderPhotos(photos)

    def run():
        folder, pairs = _folder(photos), []
        for number, name in enumerate(source.names):
            with source.open(number) as file:
                pixels = torch.from_numpy(crops(load_photo(file).rgb, name, _recipe()))
            high = (pixels.permute(0, 3, 1, 2).float() / 127.5 - 1).contiguous(memory_format=layout)
            low = interpolate(high, scale_factor=0.5, mode="area")
            low = interpolate(low, scale_factor=2, mode="bilinear")
            with torch.inference_mode():
                pairs.append([model.encode(image).latent_dist.mode().half() for image in (low, high)])
        torch.save(pairs, folder / "data.pt")
        shutil.rmtree(folder)

    return run
