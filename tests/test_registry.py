"""Tables: names with settings become objects; anything else is refused in one line."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmboost_jax.errors import InputError
from fmboost_jax.registry import build, choose, import_extensions


@dataclasses.dataclass(frozen=True)
class Shape:
    side: float = 1.0
    name: str = "square"


TABLE = {"shape": Shape}


def test_a_text_names_an_entry_and_its_settings():
    assert build("shape", "shape", TABLE) == Shape()
    assert type(build("shape", "shape(side=2)", TABLE).side) is float
    assert build("shape", ' shape(side=2.5, name="a") ', TABLE) == Shape(2.5, "a")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("circle", r"shape 'circle' is unknown; expected one of shape"),
        ("shape(radius=1)", r"shape 'shape\(radius=1\)': .*radius"),
        ("shape(1)", "expected a name, with settings"),
        ("shape(side=open('x'))", "shape"),
        ("shape(", "expected a name"),
        ("", "expected a name"),
    ],
)
def test_malformed_texts_are_refused_in_one_line(text, message):
    with pytest.raises(InputError, match=message) as caught:
        build("shape", text, TABLE)
    assert "\n" not in str(caught.value)


@given(st.text(max_size=40))
def test_texts_execute_no_code(text):
    try:
        assert isinstance(build("shape", text, TABLE), Shape)
    except InputError as error:
        assert "\n" not in str(error)  # noqa: PT017


def test_choose_lists_the_known_names():
    assert choose("shape", "shape", TABLE) is Shape
    with pytest.raises(InputError, match="shape 'x' is unknown; expected one of shape"):
        choose("shape", "x", TABLE)


def test_a_file_adds_entries(tmp_path):
    file = tmp_path / "my_shapes.py"
    file.write_text("from tests.test_registry import TABLE, Shape\nTABLE['round'] = lambda: Shape(name='round')\n")
    import_extensions([str(file)])
    assert build("shape", "round", TABLE).name == "round"
    del TABLE["round"]
    file.write_text("1 / 0")
    with pytest.raises(InputError, match=r"extension .*my_shapes.py cannot be imported: division by zero"):
        import_extensions([str(file)])
    with pytest.raises(InputError, match="extension no_such_module cannot be imported"):
        import_extensions(["no_such_module"])
