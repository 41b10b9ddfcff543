"""tools/split_photos.py: the held-out part is a fixed function of the names."""

import pathlib

from hypothesis import given, settings
from hypothesis import strategies as st

from tools.split_photos import ONE_IN, is_held_out, is_photograph

NAMES = st.text("abcdefghijklmnopqrstuvwxyz0123456789-_", min_size=1, max_size=20)


@settings(max_examples=50, deadline=None)
@given(NAMES, NAMES, st.sampled_from([".jpg", ".png", ".webp"]))
def test_folder_and_suffix_do_not_matter(stem, folder, suffix):
    assert is_held_out(pathlib.PurePath(folder, stem + suffix)) == is_held_out(pathlib.PurePath(stem + ".jpg"))


def test_one_in_eight_is_held_out():
    held_out = sum(is_held_out(pathlib.PurePath(f"{number}.jpg")) for number in range(4000))
    assert abs(held_out / 4000 - 1 / ONE_IN) < 0.02


def test_known_photographs_keep_their_part():
    """What the packaged weights have not seen must not move into the training part."""
    for name in (
        "test-0369d229ba4c",
        "vali-0c49a5cce349",
        "canyon-wren",
        "perched-osprey",
        "1129482",
        "pexels-photo-7078476",
        "mate-YellowFlower",
    ):
        assert is_held_out(pathlib.PurePath(f"{name}.jpg"))
    for name in ("casa-mila", "roman-colosseum", "1001682", "mate-Aqua"):
        assert not is_held_out(pathlib.PurePath(f"{name}.jpg"))


def test_charts_and_drawings_are_left_out():
    for name in ("Boxplot", "newplot (1)", "1454613116", "21169144185_3f7977", "962312"):
        assert not is_photograph(pathlib.PurePath("cid22", f"{name}.jpg"))
    for name in ("1001682", "3316926_opo25u", "pexels-photo-1075776"):
        assert is_photograph(pathlib.PurePath("cid22", f"{name}.jpg"))
    assert is_photograph(pathlib.PurePath("budgie", "casa-mila.jpg"))
    assert is_photograph(pathlib.PurePath("clic2025", "vali-0c49a5cce349.jpg"))
    assert not is_photograph(pathlib.PurePath("budgie", "waves-midnight.jpg"))
