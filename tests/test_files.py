"""Atomic writing of files and folders, local paths, and reading of JSON."""

import json
import os

import pytest

from fmboost_jax.errors import InputError
from fmboost_jax.files import (
    atomic_file,
    atomic_folder,
    local_path,
    read_json,
    refuse_existing,
    user_cache,
    utf8_path,
)
from fmboost_jax.training.checkpoints import Checkpoints


def fill(path, content, error=None):
    with atomic_file(path) as file:
        file.write(content)
        file.flush()
        if error:
            raise error
        return sorted(os.listdir(path.parent))


def fill_folder(path, content, error=None):
    with atomic_folder(path) as folder:
        (folder / "weights").write_text(content)
        if error:
            raise error


def test_the_users_cache_is_where_the_environment_puts_it(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert user_cache() == str(tmp_path / "fmboost_jax")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_cache("torch") == str(tmp_path / ".cache" / "torch")


def test_a_file_is_replaced_only_when_the_block_ends_without_an_error(tmp_path):
    path = tmp_path / "new" / "file"
    fill(path, b"old")
    with pytest.raises(KeyboardInterrupt):
        fill(path, b"half of the n", KeyboardInterrupt())
    assert path.read_bytes() == b"old"
    assert os.listdir(path.parent) == ["file"]
    during = fill(path, b"new")
    assert path.read_bytes() == b"new"
    assert len(during) == 2


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "model"
    with pytest.raises(OSError, match="full"):
        fill_folder(path, "half", OSError("the disk is full"))
    assert os.listdir(tmp_path) == []
    fill_folder(path, "all")
    assert (path / "weights").read_text() == "all"
    with pytest.raises(InputError, match="exists already"):
        fill_folder(path, "other")
    assert (path / "weights").read_text() == "all"


def test_a_folder_without_write_permission_is_unchanged(tmp_path):
    """Where the tests run as root, which may write everywhere, another user tries it."""
    closed = tmp_path / "closed"
    fill(closed / "file", b"old")
    closed.chmod(0o500)
    child = os.fork()
    if child == 0:
        status = 0
        try:
            if os.getuid() == 0:
                os.setuid(65534)
            fill(closed / "file", b"new")
        except PermissionError:
            status = 3
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
    closed.chmod(0o700)
    assert os.listdir(closed) == ["file"]
    assert (closed / "file").read_bytes() == b"old"


@pytest.mark.parametrize("name", ["a" * 255, "é" * 127, "日" * 85])
def test_names_at_the_limit_of_the_file_system(tmp_path, name):
    fill(tmp_path / name, b"content")
    fill_folder(tmp_path / f"{name[:-1]}b", "content")
    assert len(os.listdir(tmp_path)) == 2


@pytest.mark.parametrize("path", ["", "a\0b", "gs://bucket/file", "gs:/bucket/file", "https://host/file"])
def test_addresses_and_empty_paths_are_refused(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    for write in (fill, fill_folder):
        with pytest.raises(InputError, match="output "):
            write(path, b"")
    assert os.listdir(tmp_path) == []
    for fine in ("C:/photos", "a:b", "coco/2017:validation", "x/y:/z"):
        assert local_path(fine, "output") == fine


def test_orbax_gets_utf8_paths_only(tmp_path):
    strange = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")
    assert utf8_path(tmp_path / "café", "workdir") == str(tmp_path / "café")
    for use in (lambda: utf8_path(strange, "workdir"), lambda: Checkpoints(strange)):
        with pytest.raises(InputError, match=r"workdir .*caf\\xe9: its name is not UTF-8"):
            use()
    assert os.listdir(tmp_path) == []


def test_an_existing_path_is_refused_even_a_dangling_link(tmp_path):
    refuse_existing(tmp_path / "absent")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match="exists already; choose another name"):
        refuse_existing(tmp_path / "link")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_json_in_any_unicode_encoding(tmp_path, encoding):
    (tmp_path / "x.json").write_bytes(json.dumps({"ä": [1]}, ensure_ascii=False).encode(encoding))
    assert read_json(tmp_path / "x.json") == {"ä": [1]}


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'{"a": "\xff"}', b"[" * 100_000, b'{"a": %s}' % (b"9" * 5000)])
def test_damaged_json_is_one_line(tmp_path, content):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(InputError, match=r"x\.json is damaged") as caught:
        read_json(tmp_path / "x.json")
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        read_json(tmp_path)
