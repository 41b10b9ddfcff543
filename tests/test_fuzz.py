"""A few damaged files of every kind for every reader; `python -m tests.fuzz` runs more."""

import random

import pytest

from tests.fuzz import READERS, changed, fuzz

# A bundle's reader lists the parameters of a network for each file.
CASES = {"bundle": 8}


@pytest.mark.parametrize("name", READERS)
def test_changed_files_give_a_result_or_one_line(tmp_path, name):
    for number, text in fuzz(name, tmp_path, 0, iter(range(CASES.get(name, 40)))):
        pytest.fail(f"file {number}: {text}")


def test_a_failing_reader_is_found(tmp_path, monkeypatch):
    def read(folder):
        if b"\xff" in (folder / "a").read_bytes():
            raise UnicodeError("as a careless reader does")

    monkeypatch.setitem(READERS, "careless", READERS["torch"]._replace(make=_letters, read=read, changed="a"))
    found = list(fuzz("careless", tmp_path, 0, iter(range(40))))
    assert 0 < len(found) < 40
    assert all("as a careless reader does" in text for _, text in found)


def _letters(folder):
    (folder / "a").write_bytes(b"a" * 100)


def test_changes_depend_on_the_seed_alone():
    first, again, other = (changed(b"a" * 100, random.Random(seed)) for seed in (1, 1, 2))
    assert first == again != other
