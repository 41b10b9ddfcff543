"""Protocols and image sets: refused settings, random draws, pairs and captions."""

import json

import numpy as np
import pytest
from PIL import Image

from fmboost_jax.configuration import read_config
from fmboost_jax.data.sources import FolderPhotos
from fmboost_jax.errors import InputError
from fmboost_jax.evaluation.image_set import ImageSet, check_pairs, read_captions
from fmboost_jax.evaluation.protocol import Protocol
from fmboost_jax.images.photos import UnusablePhoto


def protocol(name="folders.py", *overrides):
    return read_config(f"protocols/{name}", overrides, Protocol)


def folder(path, **pictures):
    path.mkdir()
    for name, (width, height) in pictures.items():
        pixels = np.random.default_rng(len(name)).integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(pixels).save(path / f"{name}.png")
    return path


def collection(path, *overrides):
    return ImageSet(FolderPhotos(path), protocol("folders.py", *overrides))


@pytest.mark.parametrize(
    ("name", "low_res", "high_res", "source"),
    [
        ("folders.py", 0, 0, "photographs"),
        ("coco5k.py", 512, 1024, "prompts"),
        ("coco5k.py:x4", 256, 1024, "prompts"),
        ("coco5k.py:x4_25_20", 256, 1024, "prompts"),
        ("laion5k.py", 512, 1024, "prompts"),
        ("laion5k.py:x4", 256, 1024, "prompts"),
        ("pairs.py", 128, 512, "photographs"),
        ("sr.py", 512, 1024, "photographs"),
        ("sr.py:jpeg", 512, 1024, "photographs"),
        ("sr.py:blur_noise", 512, 1024, "photographs"),
    ],
)
def test_protocols_have_their_documented_settings(name, low_res, high_res, source):
    found = protocol(name)
    assert (found.low_res, found.high_res, found.source) == (low_res, high_res, source)
    assert found.name == name.replace(".py", "")
    whole = name in ("folders.py", "pairs.py")
    assert set(found.feature_sets) == ({"fid"} if whole else {"fid", "patch-512-fid"})


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "--config.metrics=('psnr','sim')",
            "metrics 'sim' is unknown; expected one of psnr, ssim, ssim-torchmetrics, sharpness, lpips",
        ),
        ("--config.metrics=()", "no metrics"),
        ("--config.features=vgg", "features 'vgg' is unknown; expected one of inception, efficientnet-lite0"),
        ("--config.degradation=rain", "degradation 'rain'"),
        ("--config.low_res_filter=cubic", "low_res_filter 'cubic' is unknown; expected one of nearest"),
        ("--config.source=prompts", "psnr, ssim compare an image with its original"),
        ("--config.steps=0", "steps is 0"),
        ("--config.patches=(512,4)", r"expected patches\[0\] as a list such as \(int, int\), found 512"),
        ("--config.patches=((0,4),)", "side, crops per image"),
        ("--config.high_res=-1", "high_res is -1"),
    ],
)
def test_impossible_protocols_are_refused_in_one_line(override, message):
    with pytest.raises(InputError, match=message) as error:
        protocol("folders.py", override)
    assert "\n" not in str(error.value)


def test_patches_that_do_not_fit():
    with pytest.raises(InputError, match="patches of 512 pixels are larger than images of 256"):
        protocol("sr.py", "--config.high_res=256", "--config.low_res=128")


def test_a_draw_depends_on_seed_and_names_alone(tmp_path):
    images = folder(tmp_path / "a", **{f"p{number}": (8, 8) for number in range(9)})
    drawn = collection(images, "--config.count=4").names
    assert len(drawn) == 4
    assert drawn == collection(images, "--config.count=4").names
    assert drawn != collection(images, "--config.count=4", "--config.seed=1").names
    # One that was not drawn goes: the others stay.
    (images / f"{next(name for name in collection(images).names if name not in drawn)}.png").unlink()
    assert collection(images, "--config.count=4").names == drawn
    assert len(collection(images, "--config.count=99").names) == 8


def test_images_are_cut_to_the_protocols_size(tmp_path):
    images = folder(tmp_path / "a", wide=(40, 20), small=(12, 30))
    cut = collection(images, "--config.high_res=16")
    expected = Image.open(images / "wide.png").resize((16, 16), Image.Resampling.LANCZOS, (10, 0, 30, 20))
    assert np.array_equal(cut.load("wide"), np.asarray(expected))
    with pytest.raises(UnusablePhoto, match="12×30 pixels, smaller than high_res 16"):
        cut.load("small")
    assert collection(images, "--config.high_res=16", "--config.enlarge=True").load("small").shape == (16, 16, 3)
    assert collection(images).load("wide").shape == (20, 40, 3)


def test_a_checksum_is_of_names_and_bytes(tmp_path):
    images = folder(tmp_path / "a", one=(8, 8), two=(8, 8))
    before = collection(images).checksum()
    assert collection(images).checksum() == before
    (images / "two.png").rename(images / "three.png")
    renamed = collection(images).checksum()
    content = bytearray((images / "one.png").read_bytes())
    content[-5] ^= 1
    (images / "one.png").write_bytes(content)
    assert len({before, renamed, collection(images).checksum()}) == 3


def test_pairs_that_do_not_match(tmp_path):
    many = folder(tmp_path / "many", **{f"p{number}": (8, 8) for number in range(7)}, both=(8, 8))
    few = folder(tmp_path / "few", both=(8, 8), other=(8, 8))
    with pytest.raises(
        InputError, match=r"8 images, 2 in .*7 only in the images: p0, p1, p2, p3, p4 and 2 more; 1 only in"
    ):
        check_pairs(collection(many), collection(few), protocol())
    wide = folder(tmp_path / "wide", both=(9, 8), other=(8, 8))
    with pytest.raises(InputError, match="1 pairs of different sizes: both 8×8 against 9×8"):
        check_pairs(collection(few), collection(wide), protocol())
    check_pairs(collection(few), collection(wide), protocol("folders.py", "--config.high_res=8"))
    Image.open(few / "both.png").save(few / "both.webp")
    with pytest.raises(InputError, match="another image has the same name"):
        collection(few)


def test_a_photograph_on_its_side_has_its_upright_size(tmp_path):
    images = folder(tmp_path / "a", one=(8, 16))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(images / "one.png").save(images / "turned.png", exif=exif)
    found = collection(images)
    assert (found.size("one"), found.size("turned")) == ((8, 16), (16, 8))
    assert found.load("turned").shape == (8, 16, 3)


def test_captions_are_read_by_image(tmp_path):
    def read(content, names):
        (tmp_path / "captions.json").write_text(json.dumps(content))
        return read_captions(str(tmp_path / "captions.json"), names)

    assert read({"a.jpg": "one ", "b": ["two", "three"]}, ["b", "a"]) == {"b": "two", "a": "one"}
    coco = {
        "images": [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "b.jpg"}],
        "annotations": [
            {"id": 9, "image_id": 1, "caption": "later"},
            {"id": 5, "image_id": 1, "caption": "first"},
            {"id": 6, "image_id": 2, "caption": "other"},
        ],
    }
    assert read(coco, ["a", "b"]) == {"a": "first", "b": "other"}
    with pytest.raises(InputError, match="1 of 2 images have none: c"):
        read({"a": "one"}, ["a", "c"])
    with pytest.raises(InputError, match="expected COCO's fields"):
        read({"annotations": [{"id": 1}]}, ["a"])
    with pytest.raises(InputError, match="no such file"):
        read_captions(str(tmp_path / "absent.json"), [])
