"""Unusual photographs are decoded to what a viewer shows, and crops are inside the photograph."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from fmboost_jax.data.crops import crops
from fmboost_jax.data.dataset import Recipe
from fmboost_jax.images.photos import UnusablePhoto, centre_square, load_photo, random_square

SIZE = 16


def recipe(**changes) -> Recipe:
    fields = {
        "first_stage": "identity",
        "first_stage_path": "",
        "channels": 3,
        "downsampling": 1,
        "scaling_factor": 1.0,
        "shift_factor": 0.0,
        "high_res": SIZE,
        "low_res": SIZE // 2,
        "upsampling": "psu",
        "dtype": "float16",
        "crops": 0,
        "crop_scale": 1.0,
        "seed": 0,
    }
    return Recipe(**(fields | changes))


def reload(image: Image.Image, kind="PNG", **options) -> np.ndarray:
    """The pixels that our reader finds in an image that Pillow wrote."""
    return pixels(saved(image, kind, **options))


def saved(image: Image.Image, kind="PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def pixels(content: bytes) -> np.ndarray:
    photo = load_photo(io.BytesIO(content)).rgb
    assert photo.mode == "RGB"
    return np.asarray(photo)


def plain(*colour, size=(6, 4)) -> np.ndarray:
    return np.full((size[1], size[0], 3), colour, np.uint8)


def png(width, height, depth, colour_type, rows) -> bytes:
    """A PNG of raw rows, for kinds that Pillow does not write."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


NOISE = np.random.default_rng(0).integers(0, 256, (24, 40, 3), np.uint8)


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("WEBP", {"lossless": True})])
def test_plain_pictures_are_exact(kind, options):
    np.testing.assert_array_equal(reload(Image.fromarray(NOISE), kind, **options), NOISE)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(orientation):
    """The stored pixels, turned by the tag, give the original image."""
    stored_from = {
        1: lambda p: p,
        2: lambda p: p[:, ::-1],
        3: lambda p: p[::-1, ::-1],
        4: lambda p: p[::-1],
        5: lambda p: p.transpose(1, 0, 2),
        6: lambda p: np.rot90(p, 1),
        7: lambda p: np.rot90(p, 2).transpose(1, 0, 2),
        8: lambda p: np.rot90(p, -1),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(stored_from[orientation](NOISE)))
    np.testing.assert_array_equal(reload(stored, "PNG", exif=exif), NOISE)


def test_greyscale_becomes_rgb():
    grey = NOISE[..., 0]
    np.testing.assert_array_equal(reload(Image.fromarray(grey)), np.repeat(grey[..., None], 3, axis=-1))
    np.testing.assert_array_equal(reload(Image.new("1", (6, 4), 1)), plain(255))


def test_sixteen_bits_are_scaled_not_clipped():
    values = np.array([[0, 128, 129, 257, 1000, 30000, 65406, 65535]], np.uint16)
    expected = np.round(values / 257)
    found = pixels(png(8, 1, 16, 0, [values.astype(">u2").tobytes()]))
    np.testing.assert_array_equal(found, np.repeat(expected[..., None], 3, axis=-1))
    colours = np.array([[0, 65535, 32896]], ">u2")
    np.testing.assert_array_equal(pixels(png(1, 1, 16, 2, [colours.tobytes()])), [[[0, 255, 128]]])


def palette_image() -> Image.Image:
    image = Image.new("P", (6, 4), 1)
    image.putpalette([0, 0, 0, 200, 10, 20])
    return image


TRANSPARENT_RED, HALF_BLACK = (255, 0, 0, 0), (0, 0, 0, 128)


@pytest.mark.parametrize(
    ("image", "options", "expected"),
    [
        (Image.new("RGBA", (6, 4), TRANSPARENT_RED), {}, (255, 255, 255)),
        (Image.new("RGBA", (6, 4), HALF_BLACK), {}, (127, 127, 127)),
        (Image.new("LA", (6, 4), (0, 128)), {}, (127, 127, 127)),
        (palette_image(), {"transparency": 1}, (255, 255, 255)),
        (Image.new("L", (6, 4), 9), {"transparency": 9}, (255, 255, 255)),
        (Image.new("RGB", (6, 4), (1, 2, 3)), {"transparency": (1, 2, 3)}, (255, 255, 255)),
    ],
    ids=["RGBA", "half", "LA", "palette", "grey-key", "colour-key"],
)
def test_transparent_pixels_become_white(image, options, expected):
    np.testing.assert_array_equal(reload(image, **options), plain(*expected))


def test_palette_becomes_its_colours():
    np.testing.assert_array_equal(reload(palette_image()), plain(200, 10, 20))


def test_cmyk_becomes_its_colours():
    found = reload(Image.new("CMYK", (6, 4), (0, 255, 255, 0)), "JPEG", quality=100)
    assert np.abs(found.astype(int) - plain(255, 0, 0)).max() <= 2


def gamma_one_profile() -> bytes:
    """An ICC profile of linear light with sRGB's primaries: sRGB's own with other tone curves."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    count = struct.unpack(">I", profile[128:132])[0]
    for tag in range(count):
        name, offset, _ = struct.unpack(">4sII", profile[132 + 12 * tag : 144 + 12 * tag])
        if name == b"rTRC":
            # A parametric curve of kind 3: exponent 1, slope 1 everywhere.
            one, zero = 0x10000, 0
            profile[offset : offset + 32] = b"para" + struct.pack(">IHHiiiii", 0, 3, 0, one, one, zero, one, zero)
        if name == b"desc":
            profile[offset : offset + 60] = bytes(profile[offset : offset + 60]).replace(
                b"\0s\0R\0G\0B", b"\0l\0i\0n\0e"
            )
    return bytes(profile)


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_colour_profile_is_converted(mode):
    linear = Image.new("RGB", (6, 4), (55, 55, 55)).convert(mode)
    expected = round(255 * (1.055 * (55 / 255) ** (1 / 2.4) - 0.055))  # IEC 61966-2-1
    found = reload(linear, icc_profile=gamma_one_profile())
    assert np.abs(found.astype(int) - expected).max() <= 2
    np.testing.assert_array_equal(reload(linear), plain(55, 55, 55))
    np.testing.assert_array_equal(reload(linear, icc_profile=b"no profile at all"), plain(55, 55, 55))


def test_an_animation_is_read_as_its_first_frame():
    frames = [Image.new("RGB", (6, 4), colour) for colour in ("red", "blue")]
    found = reload(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    np.testing.assert_array_equal(found, plain(255, 0, 0))


PNG = saved(Image.fromarray(NOISE))
JPEG = saved(Image.fromarray(NOISE), "JPEG")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not an image"),
        (b"<html>not found</html>", "not an image"),
        (JPEG[: len(JPEG) // 2], "truncated"),
        (PNG[: len(PNG) // 2], "truncated"),
        (PNG[:100] + bytes(1000) + PNG[1100:], "."),
        (png(20000, 20000, 8, 0, [b"\0"]), "decompression bomb"),
    ],
    ids=["empty", "html", "cut-jpeg", "cut-png", "broken-png", "bomb"],
)
def test_unusable_files_say_why(content, reason):
    with pytest.raises(UnusablePhoto, match=reason) as caught:
        load_photo(io.BytesIO(content))
    assert str(caught.value)
    assert "\n" not in str(caught.value)


@settings(max_examples=60, deadline=None)
@given(content=st.binary(max_size=40), position=st.integers(0, len(JPEG) - 1))
def test_damaged_files_are_read_or_named(content, position):
    for whole in (JPEG, PNG):
        try:
            load_photo(io.BytesIO(whole[:position] + content + whole[position + len(content) :]))
        except UnusablePhoto as reason:
            assert str(reason)  # noqa: PT017


@settings(max_examples=200, deadline=None)
@given(
    size=st.integers(1, 300),
    extra=st.tuples(st.integers(0, 3000), st.integers(0, 3000)),
    scale=st.floats(1, 50),
    key=st.text(max_size=8),
)
def test_random_squares_are_inside_the_photograph(size, extra, scale, key):
    width, height = size + extra[0], size + extra[1]
    square = random_square(width, height, size, scale, key)
    left, top, right, bottom = square.box
    assert right - left == bottom - top == square.side
    assert size <= square.side <= max(size, scale * size)
    assert left >= 0
    assert top >= 0
    assert right <= width
    assert bottom <= height


def test_random_squares_reach_everywhere():
    """All places at native resolution, sides from the smallest to the largest; pinned, since resuming relies on it."""
    squares = [random_square(10, 9, 8, 1.0, str(key)) for key in range(200)]
    assert {square[:2] for square in squares} == {(left, top) for left in range(3) for top in range(2)}
    sides = [random_square(100, 90, 10, 4.0, str(key)).side for key in range(400)]
    assert min(sides) == 10
    assert max(sides) >= 39
    assert abs(np.median(sides) - 20) < 3  # log-uniform: half of them below the geometric mean
    assert random_square(1000, 800, 64, 3.0, "0/1/a.jpg") == (550, 526, 157)


@settings(max_examples=100, deadline=None)
@given(width=st.integers(1, 4000), height=st.integers(1, 4000))
def test_centre_square_is_the_largest_and_in_the_middle(width, height):
    left, top, right, bottom = centre_square(width, height).box
    assert right - left == bottom - top == min(width, height)
    assert 0 <= left - (width - right) + 1 <= 1 + (width - min(width, height)) % 2
    assert abs(left - (width - right)) <= 1
    assert abs(top - (height - bottom)) <= 1


def test_native_crops_keep_the_pixels():
    photo = Image.fromarray(NOISE)
    found = crops(photo, "a.png", recipe(crops=5, seed=3))
    for number, crop in enumerate(found):
        left, top, right, bottom = random_square(40, 24, SIZE, 1.0, f"3/{number}/a.png").box
        np.testing.assert_array_equal(crop, NOISE[top:bottom, left:right])
    assert len({crop.tobytes() for crop in found}) > 1
    assert not np.array_equal(found, crops(photo, "a.png", recipe(crops=5, seed=4)))
    assert not np.array_equal(found, crops(photo, "b.png", recipe(crops=5, seed=3)))


def test_centre_crop_is_the_middle_resized():
    left_to_right = np.broadcast_to(np.arange(0, 240, 2, dtype=np.uint8)[None, :, None], (48, 120, 3))
    (found,) = crops(Image.fromarray(left_to_right), "a.png", recipe())
    # 48 columns from 36 on, three to a pixel: the middle one of each three, on a ramp.
    np.testing.assert_allclose(found[4, 1:-1, 0], 2 * (36 + 3 * np.arange(1, SIZE - 1) + 1), atol=1)
    np.testing.assert_array_equal(crops(Image.fromarray(NOISE[:16, :16]), "a.png", recipe())[0], NOISE[:16, :16])


def test_a_photo_smaller_than_the_crop_is_not_enlarged():
    for changes in ({}, {"crops": 2}):
        with pytest.raises(UnusablePhoto, match="40×15 pixels, smaller than the crop of 16×16"):
            crops(Image.fromarray(NOISE[:15]), "a.png", recipe(**changes))
