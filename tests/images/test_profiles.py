"""Colours of any space, depth and mode become the sRGB that a viewer shows."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from fmboost_jax.images.photos import UnusablePhoto, load_photo, photo_size
from tests.images.test_photos import NOISE, gamma_one_profile, png, reload, saved

LEVEL = 55
BRIGHTER = round(255 * (1.055 * (LEVEL / 255) ** (1 / 2.4) - 0.055))  # IEC 61966-2-1, of linear light


def named(profile: bytes, name: str) -> bytes:
    """The profile under a name of four letters."""
    return profile.replace(b"\0l\0i\0n\0e", "".join(f"\0{letter}" for letter in name).encode())


def grey_profile() -> bytes:
    """A monochrome profile of linear light."""
    curve = b"curv" + struct.pack(">II", 0, 0)
    white = b"XYZ " + struct.pack(">Iiii", 0, 63190, 65536, 54061)
    text = b"desc" + struct.pack(">II", 0, 2) + b"g\0" + bytes(78)
    tags, data, offset = b"", b"", 128 + 4 + 12 * 3
    for name, content in ((b"desc", text), (b"wtpt", white), (b"kTRC", curve)):
        content += bytes(-len(content) % 4)
        tags += name + struct.pack(">II", offset + len(data), len(content))
        data += content
    body = struct.pack(">I", 3) + tags + data
    head = struct.pack(">I4sI4s4s4s", 128 + len(body), b"lcms", 0x02100000, b"mntr", b"GRAY", b"XYZ ")
    head += bytes(12) + b"acsp" + bytes(28) + struct.pack(">iii", 63190, 65536, 54061)
    return head.ljust(128, b"\0") + body


def with_chunk(content: bytes, name: bytes, data: bytes) -> bytes:
    """A PNG with a chunk after its header."""
    chunk = struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    return content[:33] + chunk + content[33:]


def gamma(content: bytes, value: float) -> bytes:
    return with_chunk(content, b"gAMA", struct.pack(">I", round(value * 100_000)))


def loaded(content: bytes) -> np.ndarray:
    return load_photo(io.BytesIO(content)).pixels.astype(int)


PALETTE = Image.new("P", (6, 4), 1)
PALETTE.putpalette([0, 0, 0, LEVEL, LEVEL, LEVEL])


@pytest.mark.parametrize(
    ("image", "profile"),
    [
        (PALETTE, gamma_one_profile()),
        (Image.new("RGB", (6, 4), (LEVEL,) * 3), named(gamma_one_profile(), "sRGB")),
        (Image.new("L", (6, 4), LEVEL), grey_profile()),
        (Image.new("LA", (6, 4), (LEVEL, 255)), grey_profile()),
        (Image.fromarray(np.full((4, 6), LEVEL * 257, np.uint16)), grey_profile()),
    ],
    ids=["palette", "named-sRGB", "grey", "grey-alpha", "grey-16"],
)
def test_a_profile_is_applied_in_the_images_own_mode(image, profile):
    assert np.abs(reload(image, icc_profile=profile).astype(int) - BRIGHTER).max() <= 2


def test_an_srgb_profile_of_any_name_changes_nothing():
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    other = profile.replace("sRGB".encode("utf-16-be"), "mine".encode("utf-16-be"))
    assert other != profile
    np.testing.assert_array_equal(reload(Image.fromarray(NOISE), icc_profile=other), NOISE)


def test_a_grey_profile_in_a_colour_image_is_ignored():
    np.testing.assert_array_equal(reload(Image.fromarray(NOISE), icc_profile=grey_profile()), NOISE)


@pytest.mark.parametrize("mode", ["RGB", "L", "P"])
def test_the_gamma_of_a_png(mode):
    content = saved(PALETTE.convert(mode))
    assert np.abs(loaded(gamma(content, 1.0)) - BRIGHTER).max() <= 1
    assert (loaded(gamma(content, 0.45455)) == LEVEL).all()
    assert (loaded(with_chunk(gamma(content, 1.0), b"sRGB", b"\0")) == LEVEL).all()
    assert (loaded(gamma(content, 0)) == LEVEL).all()


def test_the_primaries_of_a_png_are_those_of_display_p3():
    """Values of the CSS Color 4 specification: color(display-p3 0.4 0.6 0.3) is rgb(27.3%, 60.9%, 25.6%)."""
    content = saved(Image.new("RGB", (6, 4), (102, 153, 77)))
    primaries = (0.3127, 0.329, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06)
    chunk = struct.pack(">8I", *(round(value * 100_000) for value in primaries))
    found = loaded(with_chunk(gamma(content, 0.45455), b"cHRM", chunk))[0, 0]
    to_linear = lambda v: np.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4)  # noqa: E731
    matrix = [[1.2249, -0.2247, 0], [-0.0420, 1.0419, 0], [-0.0197, -0.0786, 1.0979]]
    light = np.array(matrix) @ to_linear(np.array([102, 153, 77]) / 255)
    np.testing.assert_allclose(found, 255 * (1.055 * light ** (1 / 2.4) - 0.055), atol=1)


def test_a_transparent_grey_of_sixteen_bits():
    row = np.array([1000, 1001, 65535], ">u2").tobytes()
    content = with_chunk(png(3, 1, 16, 0, [row]), b"tRNS", struct.pack(">H", 1000))
    photo = load_photo(io.BytesIO(content))
    assert photo.alpha.tolist() == [[0, 255, 255]]
    assert photo.pixels[0, :, 0].tolist() == [255, 4, 255]


def test_a_transparent_colour_of_sixteen_bits():
    row = np.array([[0x1234, 0x5678, 0x9ABC], [0, 0, 0]], ">u2").tobytes()
    content = with_chunk(png(2, 1, 16, 2, [row]), b"tRNS", struct.pack(">HHH", 0x1234, 0x5678, 0x9ABC))
    assert load_photo(io.BytesIO(content)).alpha.tolist() == [[0, 255]]


def test_floats_are_scaled_or_refused():
    ramp = np.linspace(0, 1, 6, dtype=np.float32)[None]
    assert reload(Image.fromarray(ramp), "TIFF")[0, :, 0].tolist() == [0, 51, 102, 153, 204, 255]
    for bad in (2 * ramp, ramp - 1, np.full((1, 6), np.nan, np.float32)):
        with pytest.raises(UnusablePhoto, match="expected \\[0, 1\\]"):
            reload(Image.fromarray(bad), "TIFF")
    with pytest.raises(UnusablePhoto, match="32-bit integers"):
        reload(Image.fromarray(np.arange(6, dtype=np.int32)[None]), "TIFF")


def test_a_tiff_of_sixteen_bits_whose_zero_is_white():
    values = Image.fromarray(np.array([[0, 65535, 257]], np.uint16))
    assert reload(values, "TIFF")[0, :, 0].tolist() == [0, 255, 1]
    content = saved(values, "TIFF", tiffinfo={262: 0})
    assert loaded(content)[0, :, 0].tolist() == [255, 0, 254]


def test_cie_lab_becomes_its_colours():
    found = reload(Image.new("LAB", (6, 4), (136, 128, 128)), "TIFF")
    assert np.abs(found.astype(int) - 128).max() <= 4  # L* = 53.4, the middle grey


def test_the_size_of_an_upright_photograph():
    turned = Image.Exif()
    turned[0x0112] = 6
    assert photo_size(io.BytesIO(saved(Image.fromarray(NOISE), exif=turned))) == (24, 40)
    assert photo_size(io.BytesIO(saved(Image.fromarray(NOISE)))) == (40, 24)
    assert photo_size(io.BytesIO(b"no image")) is None
