"""Which batch and mesh a sweep tries, and which it recommends."""

import dataclasses

from fmboost_jax.planning.report import Memory, Plan, Prediction
from fmboost_jax.planning.sweep import meshes, recommend, sweep

AVAILABLE = 16 * 2**30
DATA = {"data": 8, "fsdp": 1, "spatial": 1}
SHARDED = {"data": 1, "fsdp": 8, "spatial": 1}


def plan(mesh, batch: int, *, needs: float, speed: float) -> Plan:
    """A plan that needs a share of HBM and boosts `speed` images a second."""
    total = int(needs * AVAILABLE)
    fits = needs <= 1
    memory = Memory(total, 0, 0, 0, total, AVAILABLE, needs, fits)
    seconds = 8 * batch / speed
    prediction = Prediction(1, seconds, 0.0, seconds, 1, 1, 0.5, speed, 1.0, {}, [], [], 0) if fits else None
    return Plan("config", "train", "v5e:2x4", 8, mesh, float(batch), 8 * batch, memory, prediction, 1.0, False)


def model(mesh, batch: int) -> Plan:
    """Speed grows with the batch and levels off; sharded parameters leave room and cost a little."""
    sharded = mesh["fsdp"] > 1
    return plan(mesh, batch, needs=(0.1 if sharded else 0.5) + 0.1 * batch, speed=1000 * batch / (batch + 1 + sharded))


def test_batches_grow_until_one_does_not_fit_and_other_meshes_try_it_again():
    tried = list(sweep(model, [DATA, SHARDED], (1, 2, 4, 8, 16)))
    assert [(p.mesh["fsdp"], p.batch_per_chip) for p in tried] == [(1, 1), (1, 2), (1, 4), (1, 8), (8, 4), (8, 8)]
    best = recommend(tried)
    assert (best.mesh, best.batch_per_chip) == (DATA, 4)  # 800 images/s as well as the sharded 8's, with less memory


def test_the_fastest_that_fits_is_recommended():
    slow, fast = plan(DATA, 2, needs=0.2, speed=500.0), plan(SHARDED, 8, needs=0.9, speed=900.0)
    assert recommend([slow, fast, plan(DATA, 8, needs=1.3, speed=2000.0)]) is fast
    as_fast = plan(SHARDED, 4, needs=0.5, speed=895.0)
    assert recommend([slow, fast, as_fast]) is as_fast


def test_no_recommendation_where_nothing_fits():
    tried = list(sweep(lambda mesh, batch: plan(mesh, batch, needs=3.0, speed=1.0), [DATA, SHARDED]))
    assert [dict(p.mesh) for p in tried] == [DATA, SHARDED]
    assert recommend(tried) is None


def test_meshes_fit_the_chips():
    assert meshes(1, {"data": 1, "fsdp": 1, "spatial": 1}) == [{"data": 1, "fsdp": 1, "spatial": 1}]
    for chips in (4, 16, 256):
        first = {"data": chips, "fsdp": 1, "spatial": 1}
        found = meshes(chips, first)
        assert found[0] == first
        assert len({tuple(sizes.values()) for sizes in found}) == len(found)
        assert all(sizes["data"] * sizes["fsdp"] * sizes["spatial"] == chips for sizes in found)


def test_plans_are_plain_data():
    assert dataclasses.asdict(model(DATA, 1))["memory"]["fits"] is True
