"""Metadata that a result keeps: EXIF, the place by choice, profile, 16 bits; huge photographs."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms
from PIL.ExifTags import GPS, IFD, Base

from fmboost_jax.images.photos import UnusablePhoto, load_photo, with_alpha
from fmboost_jax.images.png import read_settings, write_png
from fmboost_jax.images.sixteen_bits import read_sixteen_bits
from tests.images.test_photos import gamma_one_profile, saved

DEEP = np.random.default_rng(0).integers(0, 65536, (70, 9, 4), np.uint16)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
PHOTO = Image.fromarray((DEEP[..., :3] >> 8).astype(np.uint8))


def camera_exif() -> Image.Exif:
    """As a camera writes it: date, place, a sideways sensor, sizes, a maker's note."""
    exif = Image.Exif()
    exif[Base.DateTime], exif[Base.Make], exif[Base.Orientation] = "2026:05:01 10:00:00", "Maker", 6
    exif[Base.ImageWidth], exif[Base.Artist] = 9, "Ann"
    exif[IFD.Exif] = {Base.DateTimeOriginal: "2026:05:01 10:00:01", Base.ExifImageWidth: 9, Base.MakerNote: b"secret"}
    exif[IFD.GPSInfo] = {GPS.GPSLatitudeRef: "N", GPS.GPSLatitude: (48.0, 8.0, 0.0)}
    return exif


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_dates_are_kept_and_the_place_by_choice(tmp_path, kind):
    content = saved(PHOTO, kind, exif=camera_exif().tobytes())
    for place in (False, True):
        photo = load_photo(io.BytesIO(content), keep_metadata=True, keep_place=place)
        assert photo.rgb.size == (70, 9)
        write_png(tmp_path / "result.png", photo.pixels, {}, exif=photo.exif)
        with Image.open(tmp_path / "result.png") as result:
            exif = result.getexif()
            camera = exif.get_ifd(IFD.Exif)
            assert (exif[Base.DateTime], exif[Base.Make], exif[Base.Artist]) == ("2026:05:01 10:00:00", "Maker", "Ann")
            assert exif[Base.Orientation] == 1
            assert Base.ImageWidth not in exif
            assert camera == {Base.DateTimeOriginal: "2026:05:01 10:00:01"}
            assert exif.get_ifd(IFD.GPSInfo).get(GPS.GPSLatitude) == ((48.0, 8.0, 0.0) if place else None)


@pytest.mark.parametrize("exif", [None, b"Exif\0\0no structure", b"Exif\0\0II*\0\xff\xff\xff\xff"])
def test_a_photograph_without_exif_or_with_a_damaged_one_is_read(exif):
    content = saved(PHOTO, **({} if exif is None else {"exif": exif}))
    photo = load_photo(io.BytesIO(content), keep_metadata=True)
    assert photo.exif is None
    np.testing.assert_array_equal(photo.pixels, np.asarray(PHOTO))


def wide_profile() -> bytes:
    """sRGB's tone curve with green and blue exchanged: other primaries, and greys stay as they are."""
    profile = bytearray(SRGB)
    for tag in range(struct.unpack(">I", profile[128:132])[0]):
        at = 132 + 12 * tag
        name = {b"gXYZ": b"bXYZ", b"bXYZ": b"gXYZ"}.get(bytes(profile[at : at + 4]))
        profile[at : at + 4] = name or profile[at : at + 4]
    return bytes(profile)


def test_colours_keep_their_space_where_greys_look_the_same(tmp_path):
    wide = wide_profile()
    content = saved(PHOTO, icc_profile=wide)
    assert np.abs(load_photo(io.BytesIO(content)).pixels.astype(int) - np.asarray(PHOTO)).max() > 50
    photo = load_photo(io.BytesIO(content), keep_metadata=True)
    np.testing.assert_array_equal(photo.pixels, np.asarray(PHOTO))
    write_png(tmp_path / "result.png", photo.pixels, {}, profile=photo.profile)
    with Image.open(tmp_path / "result.png") as result:
        assert result.info["icc_profile"] == wide


def test_linear_light_and_damaged_profiles_become_srgb():
    linear = saved(PHOTO, icc_profile=gamma_one_profile())
    photo = load_photo(io.BytesIO(linear), keep_metadata=True)
    assert photo.profile is None
    np.testing.assert_array_equal(photo.pixels, load_photo(io.BytesIO(linear)).pixels)
    assert load_photo(io.BytesIO(saved(PHOTO, icc_profile=b"none")), keep_metadata=True).profile is None


@pytest.mark.parametrize("channels", [3, 4])
def test_sixteen_bits_are_written_as_they_are_read(tmp_path, channels):
    image = DEEP[..., :channels]
    write_png(tmp_path / "deep.png", image, {"seed": 3}, profile=SRGB, exif=camera_exif().tobytes()[6:])
    assert read_settings(tmp_path / "deep.png") == {"seed": 3}
    np.testing.assert_array_equal(read_sixteen_bits(tmp_path / "deep.png"), np.rot90(image[..., :3], -1))
    with Image.open(tmp_path / "deep.png") as found:
        np.testing.assert_array_equal(np.asarray(found), image >> 8)
        assert found.info["icc_profile"] == SRGB
        assert found.getexif()[Base.Make] == "Maker"


def tiff(order: str) -> bytes:
    """An uncompressed TIFF of 16-bit RGB, which Pillow does not write."""
    height, width, channels = DEEP[..., :3].shape
    data = DEEP[..., :3].astype(f"{order}u2").tobytes()
    tags = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 3, 134), (259, 3, 1, 1), (262, 3, 1, 2)]
    tags += [(273, 4, 1, 140), (277, 3, 1, channels), (278, 4, 1, height), (279, 4, 1, len(data))]
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8) + struct.pack(f"{order}H", len(tags))
    for tag, kind, count, value in tags:
        packed = struct.pack(f"{order}I", value) if kind == 4 or count > 2 else struct.pack(f"{order}HH", value, 0)
        head += struct.pack(f"{order}HHI", tag, kind, count) + packed
    head += bytes(4)
    assert len(head) <= 134
    return head.ljust(134, b"\0") + struct.pack(f"{order}HHH", 16, 16, 16) + data


@pytest.mark.parametrize("order", ["<", ">"])
def test_sixteen_bits_of_tiff_in_both_orders_of_bytes(order):
    photo = load_photo(io.BytesIO(tiff(order)), keep_metadata=True)
    np.testing.assert_array_equal(photo.deep, DEEP[..., :3])
    assert load_photo(io.BytesIO(tiff(order))).deep is None


def test_grey_of_sixteen_bits(tmp_path):
    for kind, options in (("PNG", {}), ("TIFF", {"compression": "tiff_lzw"})):
        content = saved(Image.fromarray(DEEP[..., 0]), kind, **options)
        photo = load_photo(io.BytesIO(content), keep_metadata=True)
        np.testing.assert_array_equal(photo.pixels, np.repeat(DEEP[..., :1], 3, axis=-1))


def test_transparent_pixels_of_sixteen_bits_are_kept(tmp_path):
    write_png(tmp_path / "deep.png", DEEP)
    photo = load_photo(tmp_path / "deep.png", keep_metadata=True)
    opaque = DEEP[..., 3] >> 8 > 128
    found = with_alpha(photo.pixels, photo.alpha)
    assert found.dtype == np.uint16
    np.testing.assert_array_equal(found[..., 3], (DEEP[..., 3] >> 8) * 257)
    assert np.abs(found[opaque].astype(int) - DEEP[opaque])[:, :3].max() <= 2


def test_eight_bits_and_black_stay_eight_bits():
    assert load_photo(io.BytesIO(saved(PHOTO)), keep_metadata=True).deep is None
    dark = saved(Image.fromarray(DEEP[..., 0] >> 8))
    assert load_photo(io.BytesIO(dark), keep_metadata=True).deep is None


def test_larger_photographs_are_read_where_that_is_allowed(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    content = saved(PHOTO)
    with pytest.raises(UnusablePhoto, match=r"exceeds limit of 200 pixels.*a larger limit of megapixels allows it"):
        load_photo(io.BytesIO(content))
    assert load_photo(io.BytesIO(content), max_pixels=9 * 70).rgb.size == (9, 70)
    with pytest.raises(UnusablePhoto, match="limit of 628"):
        load_photo(io.BytesIO(content), max_pixels=9 * 70 - 1)
    assert Image.MAX_IMAGE_PIXELS == 100


def test_a_deep_png_of_a_smooth_picture_is_small(tmp_path):
    """Filtered as other encoders do, it takes a fraction of what its plain bytes take."""
    rows, columns = np.mgrid[:200, :200]
    smooth = np.repeat((rows * rows // 2 + 101 * columns).astype(np.uint16)[..., None], 3, axis=-1)
    write_png(tmp_path / "smooth.png", smooth)
    assert (tmp_path / "smooth.png").stat().st_size < len(zlib.compress(smooth.astype(">u2").tobytes())) / 3
