"""Sources of photographs: folders, sorted by name, and TFDS without TensorFlow."""

import io
import os
import sys

import numpy as np
import pytest
from PIL import Image

from fmboost_jax.data.sources import FolderPhotos, TFDSPhotos
from fmboost_jax.errors import InputError
from fmboost_jax.images.photos import load_photo


def write(folder, *names, size=(8, 8)):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, "red").save(path, {".webp": "WEBP", ".png": "PNG"}.get(path.suffix.lower(), "JPEG"))


def test_images_of_a_folder_are_sorted_and_other_files_skipped(tmp_path):
    write(tmp_path, "b.JPG", "a/z.png", "a/b/c.webp", "ö.jpeg", ".hidden.jpg", ".trash/x.jpg")
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "folder.png").mkdir()
    photos = FolderPhotos(tmp_path)
    assert photos.names == ["a/b/c.webp", "a/z.png", "b.JPG", "ö.jpeg"]
    with photos.open(1) as file:
        assert load_photo(file).rgb.size == (8, 8)


def test_names_that_are_no_utf8_can_be_printed(tmp_path):
    (tmp_path / b"caf\xe9.png".decode("utf-8", "surrogateescape")).write_bytes(b"x")
    photos = FolderPhotos(tmp_path)
    assert photos.names == ["caf\\xe9.png"]
    with photos.open(0) as file:
        assert file.read() == b"x"


def test_every_image_format_and_links_are_read_and_pipes_named(tmp_path, capsys):
    """Every format that `sample` reads is read here; a pipe is named and never opened."""
    write(tmp_path, "a.tif", "b.avif", "c.bmp", "d.gif", "e.jfif", "f.jp2")
    write(tmp_path / "elsewhere", "x.png")
    folder = tmp_path / "photographs"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    (folder / "again").symlink_to(folder)
    os.mkfifo(folder / "pipe.jpg")
    (folder / "dead.jpg").symlink_to(tmp_path / "nowhere")
    for number, name in enumerate("abcdef"):
        next(tmp_path.glob(f"{name}.*")).rename(folder / f"{number}{next(tmp_path.glob(f'{name}.*')).suffix}")
    assert FolderPhotos(folder).names == ["0.tif", "1.avif", "2.bmp", "3.gif", "4.jfif", "5.jp2", "link/x.png"]
    said = capsys.readouterr().err
    assert f"left out {folder / 'pipe.jpg'}: a pipe" in said
    assert "dead.jpg: No such file" in said


def test_fingerprint_follows_names_and_sizes(tmp_path):
    write(tmp_path, "a.png", "b.png")
    before = FolderPhotos(tmp_path).fingerprint
    assert FolderPhotos(str(tmp_path)).fingerprint == before
    write(tmp_path, "b.png", size=(64, 64))
    changed = FolderPhotos(tmp_path).fingerprint
    write(tmp_path, "c.png")
    assert len({before, changed, FolderPhotos(tmp_path).fingerprint}) == 3


def test_missing_and_empty_folders_are_named(tmp_path):
    with pytest.raises(InputError, match="nowhere does not exist"):
        FolderPhotos(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("no picture")
    with pytest.raises(InputError, match="holds no photographs; expected image files"):
        FolderPhotos(tmp_path)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Folder of a small TFDS dataset: five upright pictures whose stored pixels lie on their side."""
    tfds = pytest.importorskip("tensorflow_datasets")

    class SidewaysPhotos(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {"picture": tfds.features.Image(), "label": tfds.features.ClassLabel(num_classes=5)}
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            exif = Image.Exif()
            exif[0x0112] = 6
            for number in range(5):
                file = io.BytesIO()
                Image.new("RGB", (20, 10), (0, 50 * number, 0)).save(file, "PNG", exif=exif)
                file.seek(0)
                yield number, {"picture": file, "label": number}

    folder = tmp_path_factory.mktemp("tfds")
    SidewaysPhotos(data_dir=folder, file_format="array_record").download_and_prepare()
    return folder


def test_tfds_images_are_read_undecoded(prepared):
    assert "tensorflow" not in sys.modules
    photos = TFDSPhotos(f"sideways_photos:train:{prepared}")
    assert photos.names == [f"sideways_photos/1.0.0/train/{number:08d}" for number in range(5)]
    loaded = [load_photo(photos.open(number)).rgb for number in range(5)]
    assert {photo.size for photo in loaded} == {(10, 20)}
    assert {np.asarray(photo)[0, 0, 1] for photo in loaded} == {0, 50, 100, 150, 200}
    assert "tensorflow" not in sys.modules


def test_tfds_splits_may_hold_colons_and_versions(prepared):
    part = TFDSPhotos(f"sideways_photos:1.0.0:train[:60%]:{prepared}")
    assert len(part.names) == 3
    assert part.fingerprint != TFDSPhotos(f"sideways_photos:train:{prepared}").fingerprint


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("sideways_photos", "expected NAME:SPLIT or NAME:SPLIT:DATA_DIR"),
        ("sideways_photos:test:{}", "Unknown split 'test'"),
        ("no_such_photos:train:{}", "no_such_photos not found"),
    ],
)
def test_tfds_errors_are_one_line(name, message, prepared):
    with pytest.raises(InputError, match=message) as caught:
        TFDSPhotos(name.format(prepared))
    assert "\n" not in str(caught.value)


def test_missing_tfds_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(InputError, match=r"pip install 'fmboost_jax\[tfds\]'"):
        TFDSPhotos("coco/2017:validation")
