"""Collectives of compiled programs: their kinds, bytes and links, and their overlap with computation."""

import pytest

from fmboost_jax.errors import InputError
from fmboost_jax.planning.collectives import HOP_SECONDS, collectives, summary
from fmboost_jax.planning.costs import operations
from fmboost_jax.planning.hlo import parse
from fmboost_jax.planning.topologies import CHIPS, tpu_slice

pytest.importorskip("libtpu")

CLOCK, LINK = CHIPS["v5e"].clock, CHIPS["v5e"].link
MIB = 2**20


def found(lines: str, topology: str = "v5e:4x4", computations: str = ""):
    program = parse(f"{computations}\nENTRY %main (a: f32[4]) -> f32[4] {{\n{lines}\n}}\n")
    return collectives(program, operations(program), tpu_slice(topology))


def work(name: str, seconds: float) -> str:
    return f'  %{name} = f32[4]{{0}} add(%a, %a), backend_config={{"estimated_cycles":"{int(seconds * CLOCK)}"}}'


def test_a_synchronous_collective_is_exposed():
    (alone,) = found(
        f"  %all-reduce.1 = (bf16[{MIB}]{{0}}, f32[2,{MIB}]{{1,0}}) all-reduce(%a, %b), channel_id=1, "
        "replica_groups=mesh['axis_0'=16] {'axis_0'}, to_apply=%add"
    )
    assert (alone.kind, alone.bytes, alone.chips, alone.overlapped) == ("all-reduce", 10 * MIB, 16, False)
    # Two lines of four, one link out of each chip along either, everything but its own share twice.
    expected = 2 * 15 / 16 * 10 * MIB / (2 * LINK) + 12 * HOP_SECONDS
    assert alone.exposed == alone.seconds == pytest.approx(expected)


def test_computation_between_start_and_done_overlaps():
    gather = (
        f"  %all-gather-start.1 = (bf16[{MIB}]{{0}}, bf16[4,{MIB}]{{1,0}}) all-gather-start(%a), channel_id=1, "
        "replica_groups={{0,1,2,3},{4,5,6,7},{8,9,10,11},{12,13,14,15}}, dimensions={0}\n"
        "WORK\n"
        f"  %all-gather-done.1 = bf16[4,{MIB}]{{1,0}} all-gather-done(%all-gather-start.1)"
    )
    needed = 3 / 4 * 8 * MIB / LINK + 3 * HOP_SECONDS
    (half,) = found(gather.replace("WORK", work("w", needed / 2)))
    assert (half.kind, half.bytes, half.chips, half.overlapped) == ("all-gather", 8 * MIB, 4, True)
    assert half.seconds == pytest.approx(needed)
    assert half.exposed == pytest.approx(needed / 2, rel=1e-3)
    (hidden,) = found(gather.replace("WORK", work("w", 2 * needed)))
    assert (hidden.exposed, hidden.overlapped) == (0, True)
    (bare,) = found(gather.replace("WORK", ""))
    assert (bare.exposed, bare.overlapped) == (pytest.approx(needed), False)


def test_the_compilers_own_asynchronous_fusions():
    inside = (
        f"  %all-gather.N = bf16[4,{MIB}]{{1,0}} all-gather(%p), channel_id=7, "
        "replica_groups=mesh['axis_0'=4,'axis_1'=1,'axis_2'=4], device_ids=([4,4]T(1,0)) {'axis_0'}, dimensions={0}"
    )
    computations = "\n".join(
        f"%{name} (p: bf16[4]) -> bf16[4] {{\n{inside.replace('N', str(i))}\n}}"
        for i, name in enumerate(("begin", "amid", "end"))
    )
    needed = 3 / 4 * 8 * MIB / LINK + 3 * HOP_SECONDS
    (one,) = found(
        "  %async-collective-start = (bf16[4]{0}) fusion(%a), kind=kCustom, calls=%begin\n"
        "  %fusion.1 = (bf16[4]{0}) fusion(%g), kind=kOutput, calls=%amid, "
        f'backend_config={{"estimated_cycles":"{int(needed / 4 * CLOCK)}"}}\n'
        "  %async-collective-done = bf16[4]{0} fusion(%h), kind=kCustom, calls=%end",
        computations=computations,
    )
    assert (one.kind, one.bytes, one.chips, one.overlapped) == ("all-gather", 8 * MIB, 4, True)
    assert one.exposed == pytest.approx(needed * 3 / 4, rel=1e-3)


def test_both_forms_of_reduce_scatter_are_counted():
    fused = (
        f"%all-reduce-scatter (p: f32[{MIB}]) -> f32[4] {{\n"
        f"  %all-reduce.3 = f32[{MIB}]{{0}} all-reduce(%p), channel_id=2, replica_groups={{{{0,4,8,12}}}}, "
        "to_apply=%add\n}"
    )
    (a,) = found("  %fusion.2 = f32[262144]{0} fusion(%a), kind=kCustom, calls=%all-reduce-scatter", computations=fused)
    (b,) = found(
        f"  %reduce-scatter.1 = f32[{MIB // 4}]{{0}} reduce-scatter(%a), replica_groups=[4,4]<=[4,4]T(1,0), "
        "dimensions={0}, to_apply=%add"
    )
    assert (a.kind, a.bytes, a.chips) == (b.kind, b.bytes, b.chips) == ("reduce-scatter", 4 * MIB, 4)
    assert a.seconds == b.seconds


def test_neighbours_send_over_one_link():
    (sent,) = found(
        f"  %collective-permute.1 = f32[{MIB}]{{0}} collective-permute(%a), source_target_pairs={{{{0,1}},{{1,2}}}}"
    )
    assert (sent.kind, sent.chips) == ("collective-permute", 2)
    assert sent.seconds == pytest.approx(4 * MIB / LINK + HOP_SECONDS)


def test_closed_rings_have_two_links():
    line = f"  %all-gather.1 = f32[{MIB}]{{0}} all-gather(%a), replica_groups=GROUPS, dimensions={{0}}"
    (ring,) = found(line.replace("GROUPS", "[16,16]<=[256]"), "v5e:16x16")
    assert ring.seconds == pytest.approx(15 / 16 * 4 * MIB / (2 * LINK) + 15 * HOP_SECONDS)
    (cube,) = found(line.replace("GROUPS", "[1,64]<=[64]"), "v5p:4x4x4")
    assert cube.seconds == pytest.approx(63 / 64 * 4 * MIB / (6 * CHIPS["v5p"].link) + 9 * HOP_SECONDS)


def test_summary_groups_equal_collectives_and_counts_loops():
    body = (
        "%body (p: (s32[], f32[4])) -> (s32[], f32[4]) {\n"
        "  %all-reduce.5 = f32[4]{0} all-reduce(%p), replica_groups={{0,1}}, to_apply=%add\n}\n"
        "%condition (p: (s32[], f32[4])) -> pred[] {\n}"
    )
    rows = summary(
        found(
            "  %all-reduce.4 = f32[8]{0} all-reduce(%a), replica_groups={{0,1}}, to_apply=%add\n"
            "  %while.1 = (s32[], f32[4]) while(%t), condition=%condition, body=%body, "
            'backend_config={"known_trip_count":{"n":"5"}}',
            computations=body,
        )
    )
    (row,) = rows
    assert (row["kind"], row["count"], row["bytes"], row["overlapped"]) == ("all-reduce", 6, 32 + 5 * 16, False)
    assert row["seconds"] == pytest.approx(row["exposed_seconds"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v5e", "v5e:4x4, v5p:4x4x4, v6e:4x4"),
        ("v9:2x2", "'v9:2x2' is unknown"),
        ("v5p:4x4", "'v5p:4x4' is unknown"),
        ("v5e:3x3", "cannot be compiled for"),
    ],
)
def test_unknown_topologies_are_refused(name, message):
    with pytest.raises(InputError, match=message):
        tpu_slice(name)


@pytest.mark.parametrize(("name", "chips"), [("v5e:1x1", 1), ("v5e:2x4", 8), ("v5p:2x2x1", 4), ("v6e:16x16", 256)])
def test_known_topologies(name, chips):
    assert len({device.id for device in tpu_slice(name).devices}) == chips
