"""Reading a compiled program: cycles as often as they run, categories, sources, FLOPs."""

import pathlib
import re

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmboost_jax.planning.costs import by_category, most_expensive, operations, total_cycles, total_flops
from fmboost_jax.planning.hlo import arrays, parse, size_in_bytes

# A loop of three iterations around a convolution fusion, a copy before, a conditional behind.
PROGRAM = pathlib.Path(__file__).with_name("step.hlo").read_text()


def test_loop_bodies_count_once_per_iteration():
    found = operations(parse(PROGRAM))
    assert total_cycles(found) == 200 + 3 * 1000 + 50
    assert by_category(found) == {"convolution fusion": 3000, "copy": 200, "multiply reduce fusion": 50}
    assert not any(operation.unknown_length for operation in found)


def test_the_most_expensive_operation_has_its_source_line():
    first, second = most_expensive(operations(parse(PROGRAM)), 2)
    assert (first.instruction.name, first.runs, first.cycles) == ("add_fusion.7", 3, 3000)
    assert first.instruction.op_name == "jit(step)/conv"
    assert first.instruction.source == ("models/unet.py:116", "training/step.py:70")
    assert second.instruction.name == "copy.2"


def test_flops_exclude_products_with_padding():
    # Along each axis of 8 with one zero at either end: 3·8 − 2 pairs.
    assert total_flops(operations(parse(PROGRAM))) == 3 * 2 * (2 * 16 * 32 * 22 * 22)


def test_loops_of_known_and_unknown_length():
    known = PROGRAM.replace("body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"7"}}')
    assert total_cycles(operations(parse(known))) == 200 + 7 * 1000 + 50
    unknown = operations(parse(PROGRAM.replace("direction=LT", "direction=NE")))
    assert total_cycles(unknown) == 200 + 1000 + 50
    assert [o.instruction.name for o in unknown if o.unknown_length] == ["while.1"]


def test_arrays_of_a_tuple():
    shape = "(f32[128]{0:T(128)S(1)}, /*index=1*/bf16[8,384]{1,0:T(8,128)(2,1)}, pred[], u32[]{:S(2)})"
    assert arrays(shape) == [("f32", (128,)), ("bf16", (8, 384)), ("pred", ()), ("u32", ())]
    assert size_in_bytes(arrays(shape)) == 4 * 128 + 2 * 8 * 384 + 1 + 4


@settings(max_examples=15, deadline=None)
@given(
    size=st.integers(4, 9),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 2),
    pads=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    spread=st.integers(1, 2),
)
def test_flops_of_convolutions_agree_with_xla(size, kernel, stride, pads, spread):
    def convolve(x, k):
        return jax.lax.conv_general_dilated(
            x, k, (stride, 1), (pads, (1, 0)), (spread, 1), dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    x, k = jax.ShapeDtypeStruct((2, size, 5, 3), jnp.float32), jax.ShapeDtypeStruct((kernel, 2, 3, 4), jnp.float32)
    lowered = jax.jit(convolve).lower(x, k)
    text = _printed(lowered.compiler_ir("hlo").as_hlo_text())
    # XLA leaves the entry out where every tap falls on padding or on a hole.
    assert total_flops(operations(parse(text))) == lowered.cost_analysis().get("flops", 0)


@pytest.mark.parametrize("equation", ["ij,jk->ik", "bij,bkj->bik", "bihd,bjhd->bhij"])
def test_flops_of_products_agree_with_xla(equation):
    sides = dict(zip("bijkhd", (2, 3, 4, 5, 6, 7), strict=True))
    operands = [
        jax.ShapeDtypeStruct([sides[axis] for axis in part], jnp.float32)
        for part in equation.partition("->")[0].split(",")
    ]
    lowered = jax.jit(lambda a, b: jnp.einsum(equation, a, b)).lower(*operands)
    text = _printed(lowered.compiler_ir("hlo").as_hlo_text())
    assert total_flops(operations(parse(text))) == lowered.cost_analysis()["flops"]


def _printed(text: str) -> str:
    """A program that is not compiled yet, as a compiled one is printed: names have a % and computations their types."""
    text = re.sub(r"^(ENTRY )?([\w.\-]+) \{$", r"\1%\2 () -> () {", text, flags=re.MULTILINE)
    text = re.sub(r"^(\s+)(ROOT )?([\w.\-]+) = ", r"\1\2%\3 = ", text, flags=re.MULTILINE)
    return re.sub(r"(?<=[(\s])([a-z_]\w*\.\d+)(?=[,)])", r"%\1", text)
