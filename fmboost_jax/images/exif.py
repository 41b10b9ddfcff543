"""The EXIF of photographs: orientation, and the tags that are valid for an enlarged copy."""

import contextlib

from PIL import Image, ImageOps
from PIL.ExifTags import IFD

# Tags of the image itself, not of how its file stores it (CIPA DC-008, table 4): description, make, model, resolution,
# software, date, artist, host computer, rating, copyright; title, comment, author, keywords, subject of Windows.
_IMAGE = (270, 271, 272, 282, 283, 296, 305, 306, 315, 316, 18246, 33432, *range(40091, 40096))
_ORIENTATION = 274
# Of the camera's tags, all but the maker's note, which holds anything, the interoperability tags, width and height.
_NOT_CAMERA = (37500, 40961, 40962, 40963, 40965)


def upright(image: Image.Image) -> Image.Image:
    """Turn and mirror an image by its EXIF orientation; damaged EXIF is ignored, as in viewers."""
    # A decoder may raise anything over broken bytes.
    with contextlib.suppress(Exception):
        return ImageOps.exif_transpose(image)
    return image


def enlarged_exif(image: Image.Image, *, place: bool) -> bytes | None:
    """Read the EXIF that an upright, enlarged copy keeps: date, camera, exposure, author; no thumbnail, no size.

    Args:
        image: opened by Pillow, and loaded.
        place: whether to keep the GPS data.

    Returns:
        TIFF structure, as a PNG's chunk eXIf holds it; None where there is no EXIF, or only a damaged one.
    """
    # A decoder may raise anything over broken bytes; the pixels are fine without them.
    with contextlib.suppress(Exception):
        found, kept = image.getexif(), Image.Exif()
        for tag in _IMAGE:
            if tag in found:
                kept[tag] = found[tag]
        camera = {tag: value for tag, value in found.get_ifd(IFD.Exif).items() if tag not in _NOT_CAMERA}
        if camera:
            kept[IFD.Exif] = camera
        gps = found.get_ifd(IFD.GPSInfo)
        if place and gps:
            kept[IFD.GPSInfo] = dict(gps)
        if len(kept):
            kept[_ORIENTATION] = 1
            return kept.tobytes().removeprefix(b"Exif\0\0")
    return None
