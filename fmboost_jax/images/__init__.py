"""Images: reading photographs, colours, value ranges, resizing, tiles, PNG files."""

from fmboost_jax.images.colour import fix_colour
from fmboost_jax.images.grid import grid
from fmboost_jax.images.photos import Photo, UnusablePhoto, load_photo, with_alpha
from fmboost_jax.images.png import read_settings, write_png
from fmboost_jax.images.resize import resize_pixels, shrink, upsample
from fmboost_jax.images.tiles import map_tiles
from fmboost_jax.images.value_range import to_float, to_uint8

__all__ = [
    "Photo",
    "UnusablePhoto",
    "fix_colour",
    "grid",
    "load_photo",
    "map_tiles",
    "read_settings",
    "resize_pixels",
    "shrink",
    "to_float",
    "to_uint8",
    "upsample",
    "with_alpha",
    "write_png",
]
