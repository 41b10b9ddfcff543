"""Output files: targets are distinct, outputs are not inputs, and only results of this package are overwritten."""

import os
import socket

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fmboost_jax.boosting.outputs import (
    check_outputs,
    distinct_targets,
    find_inputs,
    output_folder,
    same_settings,
)
from fmboost_jax.errors import InputError
from fmboost_jax.files import local_path
from fmboost_jax.images.png import write_png

PIXELS = np.zeros((4, 6, 3), np.uint8)
SETTINGS = {"seed": 3, "weights": "abc", "checkpoint": "mine", "input": "123"}


def photo(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(PIXELS).save(path)
    return path


def names(found):
    inputs, problems = found
    assert problems == []
    return [one.name for one in inputs]


def test_each_input_has_its_own_target():
    assert distinct_targets(["a.png", "b.jpg", "c/a.png"]) == ["a", "b", "c/a"]
    assert distinct_targets(["a.png", "a.jpg"]) == ["a.png", "a.jpg"]
    assert distinct_targets(["A.png", "a.jpg"]) == ["A.png", "a.jpg"]
    assert distinct_targets(["é.png", "e\u0301.jpg"]) == ["é.png", "e\u0301.jpg"]
    assert distinct_targets(["x.png", "x_comparison.png"], ["_comparison"]) == ["x.png", "x_comparison.png"]
    assert distinct_targets(["x.png", "x.png"]) == ["x.png", "x.png_2"]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.from_regex(r"[aA](_c|_2|\.png)?\.(png|jpg)", fullmatch=True), max_size=8))
def test_targets_never_collide(found):
    targets = distinct_targets(found, ["_c"])
    outputs = [f"{target}{extra}".casefold() for target in targets for extra in ("", "_c")]
    assert len(set(outputs)) == len(outputs) == 2 * len(found)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text("aé日", min_size=1, max_size=260).map(lambda name: f"{name}.jpg"), max_size=4))
def test_outputs_of_long_names_fit_and_are_distinct(found):
    targets = distinct_targets([f"folder/{name}" for name in found], ["_comparison"])
    outputs = [f"{target}{extra}.png" for target in targets for extra in ("", "_comparison")]
    assert len(set(outputs)) == len(outputs)
    assert all(len(os.fsencode(name.removeprefix("folder/"))) <= 255 for name in outputs)


def test_long_names_that_share_their_start_are_distinct():
    start = "a" * 250
    first, second = distinct_targets([f"{start}.png", f"{start}.jpg"])
    assert first != second
    assert all(len(target) == 251 for target in (first, second))
    assert distinct_targets([f"{'a' * 251}.jpg"]) == ["a" * 251]


def test_every_suffix_that_opens_is_found(tmp_path):
    kinds = ("png", "jpg", "jpeg", "webp", "tif", "tiff", "bmp", "gif", "jp2", "jfif", "avif", "JPG")
    for kind in kinds:
        (tmp_path / f"photo.{kind}").write_bytes(b"")
    for kind in ("txt", "npz", "pdf", "eps", "mp4", "svg"):
        (tmp_path / f"other.{kind}").write_bytes(b"")
    (tmp_path / ".hidden.png").write_bytes(b"")
    found = names(find_inputs([tmp_path], str(tmp_path / "out")))
    assert found == sorted(f"photo.{kind}" for kind in kinds)


def test_results_are_no_inputs(tmp_path):
    photo(tmp_path / "a.png")
    out = tmp_path / "boosted"
    write_png(out / "a.png", PIXELS, SETTINGS)
    write_png(tmp_path / "earlier" / "a.png", PIXELS, SETTINGS)
    photo(tmp_path / "below" / "b.png")
    assert names(find_inputs([tmp_path], str(out))) == ["a.png", "below/b.png"]
    assert names(find_inputs([tmp_path / "earlier"], str(out))) == ["a.png"]
    write_png(tmp_path / "c.png", PIXELS, SETTINGS)
    assert "c.png" not in names(find_inputs([tmp_path], str(tmp_path)))


def test_several_inputs_and_one_twice(tmp_path):
    first, second = photo(tmp_path / "a" / "x.png"), photo(tmp_path / "b" / "x.png")
    inputs, _ = find_inputs([first, second, first, tmp_path / "a"], str(tmp_path / "out"))
    assert [one.path for one in inputs] == [str(first), str(second)]
    assert len({one.target for one in inputs}) == 2
    with pytest.raises(InputError, match=r"nowhere\.png: no such file"):
        find_inputs([first, tmp_path / "nowhere.png"], str(tmp_path))


def test_symbolic_links_are_followed_once(tmp_path):
    photo(tmp_path / "real" / "a.png")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "linked").symlink_to(tmp_path / "real")
    (tmp_path / "in" / "loop").symlink_to(tmp_path / "in")
    assert names(find_inputs([tmp_path / "in"], str(tmp_path / "out"))) == ["linked/a.png"]


def test_pipes_sockets_and_dead_links_are_named(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "b.jpg")
    (tmp_path / "c.jpg").symlink_to("nowhere")
    photo(tmp_path / "a.png")
    with socket.socket(socket.AF_UNIX) as opened:
        monkeypatch.chdir(tmp_path)  # a socket's path has at most 107 bytes
        opened.bind("d.png")
        inputs, problems = find_inputs([tmp_path], str(tmp_path / "out"))
    assert [one.name for one in inputs] == ["a.png"]
    assert [os.path.basename(line.split(": ")[0]) for line in sorted(problems)] == ["b.jpg", "c.jpg", "d.png"]
    assert "pipe" in sorted(problems)[0]
    inputs, problems = find_inputs([tmp_path / "b.jpg"], str(tmp_path / "out"))
    assert not inputs
    assert len(problems) == 1


def test_closed_folders_are_named(tmp_path, monkeypatch):
    (tmp_path / "closed").mkdir()
    photo(tmp_path / "a.png")
    scandir = os.scandir

    def closed(path):
        if os.path.basename(path) == "closed":
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closed)
    inputs, problems = find_inputs([tmp_path], str(tmp_path / "out"))
    assert [one.name for one in inputs] == ["a.png"]
    assert problems == [f"{tmp_path / 'closed'}: Permission denied"]


def test_names_that_are_not_utf8(tmp_path):
    path = os.path.join(os.fsencode(tmp_path), b"caf\xe9.png")
    with open(path, "wb") as file:
        Image.fromarray(PIXELS).save(file, "PNG")
    inputs, _ = find_inputs([tmp_path], str(tmp_path / "out"))
    assert inputs[0].label == r"caf\xe9.png"
    assert os.fsencode(inputs[0].target).endswith(b"caf\xe9")


def test_only_our_own_results_are_overwritten(tmp_path):
    path, source = str(tmp_path / "a.png"), photo(tmp_path / "in" / "a.png")
    check_outputs([path], [str(source)], SETTINGS)
    write_png(path, PIXELS, SETTINGS)
    assert same_settings(path, SETTINGS)
    check_outputs([path], [str(source)], {**SETTINGS, "checkpoint": "renamed", "input": "of other content"})
    for changed in ({"seed": 4}, {"weights": "other"}):
        with pytest.raises(InputError, match=r"1 output files exist .*a\.png"):
            check_outputs([path], [str(source)], {**SETTINGS, **changed})
    with pytest.raises(InputError, match="name another output folder"):
        check_outputs([path], [path], SETTINGS)
    os.link(path, tmp_path / "link.png")
    with pytest.raises(InputError, match="name another output folder"):
        check_outputs([path], [str(tmp_path / "link.png")], SETTINGS)
    with pytest.raises(InputError, match="were not made by this program"):
        check_outputs([str(photo(tmp_path / "person.png"))], [], SETTINGS)


def test_impossible_output_folders_are_refused(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    for path, expected in (
        ("", "is empty"),
        ("gs://bucket/out", "object stores"),
        (tmp_path / "file", "is a file"),
        (tmp_path / "file" / "below", "cannot be made"),
    ):
        with pytest.raises(InputError, match=expected):
            output_folder(path)
    assert local_path(tmp_path, "x") == str(tmp_path)
    assert not (tmp_path / "gs:").exists()
