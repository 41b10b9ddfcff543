"""The reader of PyTorch files against PyTorch itself, and against malicious files."""

import collections
import gzip
import os
import pickle
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fmboost_jax.errors import InputError
from fmboost_jax.interop.torch_file import read_torch_file

DTYPES = [
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float64,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
]


def same(found: np.ndarray, expected: torch.Tensor) -> bool:
    """Bit for bit, type included."""
    if expected.dtype == torch.bfloat16:
        return found.dtype.name == "bfloat16" and same(found.view(np.int16), expected.view(torch.int16))
    expected = expected.detach().numpy()
    return found.dtype == expected.dtype and found.shape == expected.shape and np.array_equal(found, expected)


@settings(max_examples=30, deadline=None)
@given(
    shapes=st.lists(st.lists(st.integers(0, 4), max_size=4), min_size=1, max_size=4),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 100),
    zipped=st.booleans(),
)
def test_tensors_are_read_bit_for_bit(tmp_path_factory, shapes, dtype, seed, zipped):
    generator = torch.Generator().manual_seed(seed)
    tensors = {str(i): (torch.randn(shape, generator=generator) * 50).to(dtype) for i, shape in enumerate(shapes)}
    path = str(tmp_path_factory.mktemp("torch") / "tensors.pth")
    torch.save(tensors, path, _use_new_zipfile_serialization=zipped)
    found = read_torch_file(path)
    assert found.keys() == tensors.keys()
    assert all(same(found[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize("zipped", [True, False])
def test_views_parameters_and_nested_structure(tmp_path, zipped):
    base = torch.arange(24.0).reshape(4, 6)
    model = torch.nn.Linear(3, 2)
    content = {
        "row": base[1],
        "corner": base[1:3, 2:5],
        "turned": base.T,
        "spread": base[:, :1].expand(4, 5),
        "parameter": torch.nn.Parameter(base[::2]),
        "nested": {"state_dict": model.state_dict(), "epoch": 3, "name": "x", "list": [1, (2.5, None, True)]},
        "size": base.shape,
        "class": collections.Counter,
    }
    torch.save(content, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    found = read_torch_file(str(tmp_path / "x.pth"))
    for name in ("row", "corner", "turned", "spread", "parameter"):
        assert same(found[name], content[name]), name
    nested = found["nested"]
    assert all(same(nested["state_dict"][name], tensor) for name, tensor in model.state_dict().items())
    assert (nested["epoch"], nested["name"], nested["list"]) == (3, "x", [1, (2.5, None, True)])
    assert found["size"] == (4, 6)


def test_gzip(tmp_path):
    torch.save({"a": torch.ones(3)}, tmp_path / "x.pth")
    (tmp_path / "x.pth.gz").write_bytes(gzip.compress((tmp_path / "x.pth").read_bytes()))
    assert same(read_torch_file(str(tmp_path / "x.pth.gz"))["a"], torch.ones(3))
    (tmp_path / "cut.gz").write_bytes(gzip.compress((tmp_path / "x.pth").read_bytes())[:-20])
    with pytest.raises(InputError, match="truncated"):
        read_torch_file(str(tmp_path / "cut.gz"))


class Harmful:
    """Pickles as a call of os.mkdir."""

    def __init__(self, path: str):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


class Innocent:
    """Pickles as an object of a class that the reader blocks."""


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: {"state_dict": {"w": torch.ones(2)}, "callbacks": [x]}])
def test_blocked_globals_are_named_and_not_called(tmp_path, wrap, zipped):
    harmful = wrap(Harmful(str(tmp_path / "made")))
    torch.save(harmful, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError, match=r"x\.pth: the file would run posix\.mkdir"):
        read_torch_file(str(tmp_path / "x.pth"))
    assert not (tmp_path / "made").exists()


def test_unknown_objects_are_named(tmp_path):
    torch.save({"x": Innocent()}, tmp_path / "x.pth")
    with pytest.raises(InputError, match=r"would run \S*test_torch_file\.Innocent"):
        read_torch_file(str(tmp_path / "x.pth"))


def rewritten(source, target, change):
    """Copy a zip file with `change(name, data)` applied to each member."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            data = change(name, old.read(name))
            if data is not None:
                new.writestr(name, data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda name, data: data[:8] if "/data/" in name else data, "storage 0 has 2 values, expected 6"),
        (lambda name, data: None if "/data/" in name else data, "damaged"),
        (lambda name, data: None if name.endswith("data.pkl") else data, "expected one data.pkl"),
        (lambda name, data: data[:40] if name.endswith("data.pkl") else data, "x.pth"),
        (lambda name, data: b"big" if name.endswith("byteorder") else data, "big-endian"),
        # The tensor's shape (2, 3) becomes (9, 3): beyond its storage.
        (lambda name, data: data.replace(b"K\x02K\x03\x86", b"K\x09K\x03\x86", 1), "beyond its storage"),
    ],
)
def test_damaged_archives(tmp_path, change, message):
    torch.save({"a": torch.ones(2, 3)}, tmp_path / "good.pth")
    rewritten(tmp_path / "good.pth", tmp_path / "x.pth", change)
    with pytest.raises(InputError, match=message):
        read_torch_file(str(tmp_path / "x.pth"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data[:-4], "truncated at storage"),
        (lambda data: data[:60], "not a checkpoint|damaged"),
        (lambda data: data.replace(b"little_endianq\x02\x88", b"little_endianq\x02\x89"), "big-endian"),
        # 6 values in the storage become 65286, and its list of keys another one.
        (lambda data: data.replace(b"K\x06N", b"M\x06\xffN"), "larger than the file"),
        (lambda data: data.replace(b"]q\x00X\x01\x00\x00\x000", b"]q\x00X\x01\x00\x00\x001"), "not those it lists"),
        (lambda data: data.replace(b"K\x02K\x03\x86", b"K\x09K\x03\x86", 1), "beyond its storage"),
    ],
)
def test_damaged_files_of_before_version_1_6(tmp_path, change, message):
    torch.save({"a": torch.ones(2, 3)}, tmp_path / "good.pth", _use_new_zipfile_serialization=False)
    good = (tmp_path / "good.pth").read_bytes()
    # PyTorch names storages by their address, of any length.
    key = pickle.loads(good[good.rindex(b"\x80\x02]") : -32])[0].encode()
    short = good.replace(b"X" + len(key).to_bytes(4, "little") + key, b"X\x01\x00\x00\x000")
    (tmp_path / "short.pth").write_bytes(short)
    assert same(read_torch_file(str(tmp_path / "short.pth"))["a"], torch.ones(2, 3))
    assert change(short) != short
    (tmp_path / "x.pth").write_bytes(change(short))
    with pytest.raises(InputError, match=message):
        read_torch_file(str(tmp_path / "x.pth"))


def test_other_formats_and_missing_files(tmp_path):
    torch.save({"a": torch.ones(2)}, tmp_path / "good.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "good.pth").read_bytes()[:-300])
    (tmp_path / "text.pth").write_text("no weights")
    for name, message in (("text", "expected a file of torch.save"), ("cut", "damaged"), ("absent", "No such file")):
        with pytest.raises(InputError, match=message):
            read_torch_file(str(tmp_path / f"{name}.pth"))
