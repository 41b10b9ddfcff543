"""Fuzzers: every reader gets valid files with random changes and must return a result or refuse them in one line.

    python -m tests.fuzz                        # every reader, a minute each
    python -m tests.fuzz torch --minutes 5      # one of them

A file that made an error escape is kept under --out, with its traceback. The suite runs a few changes of each reader
with a fixed seed (tests/test_fuzz.py).
"""

import argparse
import contextlib
import gzip
import io
import json
import pathlib
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
import zipfile
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from fmboost_jax.boosting.bundle import read_bundle
from fmboost_jax.boosting.latents_file import read_latents
from fmboost_jax.configuration import from_mapping
from fmboost_jax.data.dataset import DatasetInfo
from fmboost_jax.data.records import PairSource
from fmboost_jax.data.shards import FinishedShard
from fmboost_jax.errors import InputError
from fmboost_jax.files import read_json
from fmboost_jax.interop.autoencoder_configs import kl_config, tiny_config
from fmboost_jax.interop.unet import ReferenceCheckpoint, read_unet_config
from fmboost_jax.interop.weights import read_state_dict
from fmboost_jax.models.first_stage import LatentSpec
from fmboost_jax.training.config import TrainingConfig
from tests.datasets import write_dataset

SECONDS = 20  # a reader's time for one file
LONGEST_LINE = 5000  # characters
GIBIBYTES = 4  # on demand: of address space beyond what the process has at its start

BYTES = (
    b"",
    b"\x00",
    b"\xff",
    b"\x80",
    b"PK\x03\x04",
    b"PK\x05\x06",
    b"{",
    b"[",
    b'"',
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"\n",
)
NUMBERS = (0, 1, 2, 3, 8, 127, 128, 255, 2**15, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1)
VALUES: tuple[Any, ...] = (
    *(None, True, 0, -1, 1.5, 10**9, 10**18, 10**400, 1e308, float("nan"), float("inf"), "", "a", "NaN", [], {}),
    *("\ud800", "x" * 300, [[]], [None], {"": {}}, [1, "2"], "../x", "/etc/passwd", "sin(pi=3)", "()"),
)


class Reader(NamedTuple):
    """A reader and the valid files that it is given.

    Attributes:
        make: fills a folder with one valid input.
        read: reads it.
        changed: pattern of the files that are changed.
    """

    make: Callable[[pathlib.Path], None]
    read: Callable[[pathlib.Path], Any]
    changed: str


# ------------------------------------------------------------------------------------------------------------- readers


def _make_torch(folder: pathlib.Path, *, zipped: bool = True) -> None:
    import torch

    content = {
        "state_dict": {"model.net.a": torch.ones(3, 2), "b": torch.arange(4), "h": torch.ones(2, 2).bfloat16().T},
        "hyper_parameters": {"fm_cfg": {"params": {"net_cfg": {"params": {"in_channels": 8, "channel_mult": [1, 2]}}}}},
        "global_step": 7,
        "epoch": np.float64(2),
        "rest": [argparse.Namespace(x=1), {1, 2}, b"bytes", pathlib.PurePosixPath("a"), torch.device("cpu")],
    }
    torch.save(content, folder / "x.ckpt", _use_new_zipfile_serialization=zipped)


def _make_gzipped(folder: pathlib.Path) -> None:
    _make_torch(folder)
    (folder / "x.ckpt").write_bytes(gzip.compress((folder / "x.ckpt").read_bytes()))


def _read_torch(folder: pathlib.Path) -> None:
    for read in (read_state_dict, ReferenceCheckpoint.read):
        with _one_line():
            read(str(folder / "x.ckpt"))


def _make_safetensors(folder: pathlib.Path) -> None:
    from safetensors.numpy import save_file

    places = {}
    for number in (1, 2):
        name = f"x-0000{number}-of-00002.safetensors"
        save_file({f"{number}.a": np.ones((2, 3), np.float16), f"{number}.b": np.arange(3)}, folder / name)
        places |= {f"{number}.a": name, f"{number}.b": name}
    (folder / "x.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


CONFIGS: dict[str, tuple[Any, Callable[[pathlib.Path], Any]]] = {
    "diffusers": (
        {
            "_class_name": "AutoencoderKL",
            "block_out_channels": [32, 64],
            "layers_per_block": 1,
            "act_fn": "silu",
            "latent_channels": 4,
            "norm_num_groups": 32,
            "scaling_factor": 0.18,
            "shift_factor": None,
            "down_block_types": ["DownEncoderBlock2D"] * 2,
            "up_block_types": ["UpDecoderBlock2D"] * 2,
        },
        lambda path: kl_config(read_json(path), True, "float32"),
    ),
    "compvis": (
        {
            "double_z": True,
            "z_channels": 4,
            "resolution": 64,
            "in_channels": 3,
            "out_ch": 3,
            "ch": 32,
            "ch_mult": [1, 2],
            "num_res_blocks": 1,
            "attn_resolutions": [],
            "scale_factor": 0.18,
        },
        lambda path: kl_config(read_json(path), True, "float32"),
    ),
    "tiny": (
        {"_class_name": "AutoencoderTiny", "scaling_factor": 1.0, "patch_size": 1, "upsampling_scaling_factor": 2},
        lambda path: tiny_config(read_json(path), _tiny_tensors(), "float32"),
    ),
    "unet": (
        {"in_channels": 8, "model_channels": 32, "channel_mult": [1, 2], "dropout": 0.0, "attention_resolutions": [8]},
        lambda path: read_unet_config(str(path)),
    ),
    "training": (
        {
            "seed": 0,
            "path": "linear(sigma_min=0.001)",
            "objective": "flow(time='logit_normal')",
            "network": "unet",
            "unet": {"channel_mult": [1, 2]},
            "optim": {"lr": 1e-4, "accumulate": 2},
            "ema": {"decay": 0.9},
            "train": {"steps": 3},
            "checkpoint": {"keep": 2},
            "mesh": {"data": -1},
            "profile": {"steps": [1, 2]},
            "data": {"dir": "x", "low_res": 8, "high_res": 16},
            "source": {"start": "noise", "mode": "bilinear"},
        },
        lambda path: from_mapping(TrainingConfig, read_json(path), "config"),
    ),
    "shard": (
        {
            "name": "shards/00000.array_record",
            "records": 3,
            "bytes": 9,
            "sha256": "00",
            "photos": ["a", "b"],
            "skipped": [["c", "damaged"]],
        },
        lambda path: from_mapping(FinishedShard, read_json(path), str(path)),
    ),
}


def _tiny_tensors() -> dict[str, np.ndarray]:
    shapes = {"encoder.layers.0": (8, 3, 3, 3), "encoder.layers.1": (4, 8, 3, 3)}
    shapes |= {"decoder.layers.0": (8, 4, 3, 3), "decoder.layers.1": (3, 8, 3, 3)}
    return {f"{name}.weight": np.zeros(shape, np.float32) for name, shape in shapes.items()}


def _make_configs(folder: pathlib.Path) -> None:
    for name, (config, _) in CONFIGS.items():
        (folder / f"{name}.json").write_text(json.dumps(config))


def _read_configs(folder: pathlib.Path) -> None:
    for name, (_, read) in CONFIGS.items():
        with _one_line():
            read(folder / f"{name}.json")


def _make_dataset(folder: pathlib.Path) -> None:
    write_dataset(folder, shards=(2, 3), high_res=4, low_res=2)


def _read_dataset(folder: pathlib.Path) -> None:
    pairs = PairSource(DatasetInfo.read(folder))
    for index in range(min(len(pairs), 5)):
        with _one_line():
            pairs[index]


def _make_bundle(folder: pathlib.Path) -> None:
    from fmboost_jax.assets import packaged_folder

    for name in ("config.json", "unet.safetensors"):
        shutil.copy(pathlib.Path(packaged_folder("photo-x2")) / name, folder)


def _make_latents(folder: pathlib.Path) -> None:
    from safetensors.numpy import save_file

    latents = np.ones((1, 2, 3, 4), np.float32)
    np.savez(folder / "a.npz", latents)
    np.savez_compressed(folder / "b.npz", latents=latents.astype(np.float16))
    np.save(folder / "c.npy", latents)
    save_file({"latent_tensor": latents, "latent_format_version_0": np.zeros(0)}, folder / "d.latent")


def _read_latents(folder: pathlib.Path) -> None:
    for name in ("a.npz", "b.npz", "c.npy", "d.latent"):
        with _one_line():
            read_latents(str(folder / name), LatentSpec("kl", "", 4, 8))


READERS: dict[str, Reader] = {
    "torch": Reader(_make_torch, _read_torch, "*.ckpt"),
    "torch-legacy": Reader(lambda folder: _make_torch(folder, zipped=False), _read_torch, "*.ckpt"),
    "torch-gzip": Reader(_make_gzipped, _read_torch, "*.ckpt"),
    "safetensors": Reader(
        _make_safetensors, lambda folder: read_state_dict(str(folder / "x.safetensors.index.json")), "x*"
    ),
    "config": Reader(_make_configs, _read_configs, "*.json"),
    "dataset": Reader(_make_dataset, _read_dataset, "dataset.json"),
    "records": Reader(_make_dataset, _read_dataset, "shards/*.array_record"),
    "bundle": Reader(_make_bundle, read_bundle, "*.*"),
    "npz": Reader(_make_latents, _read_latents, "*.*"),
}


# ------------------------------------------------------------------------------------------------------------- changes


def changed(content: bytes, random: random.Random) -> bytes:
    """Return a file's content with a few changes: of bytes, of the values of its JSON, or of the members of its zip."""
    with contextlib.suppress(Exception):
        if content.startswith(b"PK") and random.random() < 0.7:
            return _changed_zip(content, random)
        if content.startswith(b"\x1f\x8b") and random.random() < 0.8:
            return gzip.compress(changed(gzip.decompress(content), random), random.choice((0, 9)))
        if content[8:9] == b"{" and random.random() < 0.7:
            return _changed_safetensors(content, random)
        if content.startswith(b"{") and random.random() < 0.7:
            return _changed_json(content, random)
    data = bytearray(content)
    for _ in range(random.choice((1, 1, 1, 2, 5, 20))):
        _change_bytes(data, random)
    return bytes(data)


def _change_bytes(data: bytearray, random: random.Random) -> None:
    place = random.randrange(len(data) + 1)
    length = random.choice((1, 1, 2, 4, 8, 30, 300))
    kind = random.randrange(8)
    if kind == 0 and data:
        data[place % len(data)] ^= 1 << random.randrange(8)
    elif kind == 1 and data:
        data[place % len(data)] = random.randrange(256)
    elif kind == 2:
        del data[place : place + length]
    elif kind == 3:
        data[place:place] = data[place : place + length]
    elif kind == 4:
        data[place:place] = random.choice(BYTES) * random.choice((1, 1, 8))
    elif kind == 5:
        width, letter = random.choice(((1, "B"), (2, "H"), (4, "I"), (8, "Q")))
        number = random.choice(NUMBERS) % 256**width
        data[place : place + width] = struct.pack(random.choice("<>") + letter, number)
    elif kind == 6:
        del data[place:]
    else:
        other = random.randrange(len(data) + 1)
        data[place : place + length] = data[other : other + length]


def _changed_zip(content: bytes, random: random.Random) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old:
        members = [(info.filename, old.read(info)) for info in old.infolist()]
    victim = random.randrange(len(members))
    methods = (zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
    method = random.choice(methods)
    with zipfile.ZipFile(target, "w") as new:
        for number, (name, data) in enumerate(members):
            if number == victim and random.random() < 0.1:
                continue
            new.writestr(name, changed(data, random) if number == victim else data, method)
    result = bytearray(target.getvalue())
    if random.random() < 0.2:  # a feature of zip in the flags or the version of a member
        place = result.find(random.choice((b"PK\x01\x02", b"PK\x03\x04")))
        result[place + random.randrange(4, 12)] ^= 1 << random.randrange(8)
    return bytes(result)


def _changed_safetensors(content: bytes, random: random.Random) -> bytes:
    length = int.from_bytes(content[:8], "little")
    header = _changed_json(content[8 : 8 + length], random)
    return len(header).to_bytes(8, "little") + header + content[8 + length :]


def _changed_json(content: bytes, random: random.Random) -> bytes:
    value = json.loads(content)
    for _ in range(random.choice((1, 1, 2, 5))):
        value = _changed_value(value, random)
    text = json.dumps(value)
    if random.random() < 0.05:
        text = text.replace("3", "[" * random.choice((10, 100_000)), 1)
    return text.encode(random.choice(("utf-8",) * 8 + ("utf-8-sig", "utf-16", "utf-32")), "surrogatepass")


def _changed_value(value: Any, random: random.Random) -> Any:
    """A value with one of the values in it replaced, removed, repeated or renamed."""
    if not isinstance(value, (dict, list)) or not value or random.random() < 0.1:
        return random.choice(VALUES)
    keys = list(value) if isinstance(value, dict) else range(len(value))
    key, result = random.choice(keys), value.copy()
    kind = random.random()
    if kind < 0.1:
        del result[key]
    elif kind < 0.2 and isinstance(result, dict):
        result[random.choice(("", "x", "é", str(random.choice(keys))))] = result.pop(key)
    elif kind < 0.2:
        result = result * random.choice((2, 100))
    else:
        result[key] = _changed_value(value[key], random)
    return result


# ------------------------------------------------------------------------------------------------------------- the run


@contextlib.contextmanager
def _one_line() -> Iterator[None]:
    """Accept a refusal of one line of readable length."""
    try:
        yield
    except InputError as error:
        line = str(error)
        if "\n" in line or not 10 <= len(line) <= LONGEST_LINE:
            raise AssertionError(f"the message is not one line of {LONGEST_LINE} characters: {line[:300]!r}") from error


def _too_slow(*_: Any) -> None:
    raise TimeoutError(f"the reader took more than {SECONDS} s")


def fuzz(name: str, folder: pathlib.Path, seed: int, cases: Iterator[int]) -> Iterator[tuple[int, str]]:
    """Read changed files.

    Args:
        name: entry of `READERS`.
        folder: an empty one, to work in.
        seed: of the changes; case i has the same changes in every run.
        cases: their numbers.

    Yields:
        Each case whose error escaped, with its traceback; the case's files are in `folder / "case"` meanwhile.
    """
    reader, case = READERS[name], folder / "case"
    (folder / "valid").mkdir()
    reader.make(folder / "valid")
    reader.read(folder / "valid")
    before = signal.signal(signal.SIGALRM, _too_slow)
    try:
        for number in cases:
            changes = random.Random(f"{seed} {number}")
            shutil.copytree(folder / "valid", case)
            path = changes.choice(sorted(case.glob(reader.changed)))
            path.write_bytes(changed(path.read_bytes(), changes))
            try:
                signal.alarm(SECONDS)
                with _one_line():
                    reader.read(case)
            # A fuzzer looks for every other exception.
            except Exception:
                signal.alarm(0)
                yield number, traceback.format_exc()
            finally:
                signal.alarm(0)
                shutil.rmtree(case)
    finally:
        signal.signal(signal.SIGALRM, before)


def _for_minutes(minutes: float) -> Iterator[int]:
    end, number = time.monotonic() + 60 * minutes, 0
    while time.monotonic() < end:
        yield number
        number += 1
    print(f"  {number} files", flush=True)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser("tests.fuzz", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("readers", nargs="*", metavar="READER", help=f"which: {', '.join(READERS)} (default: all)")
    parser.add_argument("--minutes", type=float, default=1, help="for each reader (default: 1)")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of the changes (default: the time)")
    parser.add_argument(
        "--out", default="fuzz_failures", help="folder of the files that escaped (default: %(default)s)"
    )
    arguments = parser.parse_args()
    if unknown := set(arguments.readers) - READERS.keys():
        parser.error(f"no reader {', '.join(sorted(unknown))}; there are {', '.join(READERS)}")
    here = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (here + GIBIBYTES * 2**30,) * 2)
    escaped: dict[str, int] = {}
    for name in arguments.readers or READERS:
        print(f"{name}, seed {arguments.seed}", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            root = pathlib.Path(folder)
            for number, text in fuzz(name, root, arguments.seed, _for_minutes(arguments.minutes)):
                place = " ".join(text.strip().splitlines()[-1].split())[:60] + text.strip().splitlines()[-3]
                escaped[place] = escaped.get(place, 0) + 1
                if escaped[place] == 1:
                    kept = pathlib.Path(arguments.out) / f"{name}-{arguments.seed}-{number}"
                    shutil.copytree(root / "case", kept, dirs_exist_ok=True)
                    (kept / "traceback.txt").write_text(text)
                    print(f"  {kept}: {text.strip().splitlines()[-1][:200]}", flush=True)
    print(f"{sum(escaped.values())} errors escaped, at {len(escaped)} places")
    sys.exit(bool(escaped))


if __name__ == "__main__":
    main()
