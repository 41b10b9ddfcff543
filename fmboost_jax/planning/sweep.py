"""Sweeps over batch sizes and meshes, and the recommended plan."""

from collections.abc import Callable, Iterable, Iterator

from fmboost_jax.planning.report import Plan

BATCHES = (1, 2, 4, 8, 16, 32, 64)
# Relative difference below which speeds are equal; the plan of less memory wins.
TIE = 0.02

Sizes = dict[str, int]
Try = Callable[[Sizes, int], Plan]


def meshes(chips: int, first: Sizes) -> list[Sizes]:
    """Return the meshes to try: the config's, parameters over all chips, parameters over four, height over two."""
    candidates = [
        first,
        {"data": 1, "fsdp": chips, "spatial": 1},
        {"data": chips // 4, "fsdp": 4, "spatial": 1},
        {"data": chips // 2, "fsdp": 1, "spatial": 2},
    ]
    fitting = [sizes for sizes in candidates if sizes["data"] * sizes["fsdp"] * sizes["spatial"] == chips]
    return [sizes for i, sizes in enumerate(fitting) if sizes not in fitting[:i]]


def sweep(try_one: Try, found_meshes: list[Sizes], batches: Iterable[int] = BATCHES) -> Iterator[Plan]:
    """Yield plans, each as soon as it is made.

    The first mesh gets batches that grow until one does not fit; the others get its best batch, and the one that did
    not fit, since it may fit there.

    Args:
        try_one: makes the plan of a mesh and a batch a chip.
        found_meshes: see `meshes`.
        batches: images a chip, ascending.
    """
    tried: list[Plan] = []
    for batch in batches:
        tried.append(try_one(found_meshes[0], batch))
        yield tried[-1]
        if not tried[-1].memory.fits:
            break
    best = recommend(tried)
    again = {int(plan.batch_per_chip) for plan in tried if plan is best or not plan.memory.fits}
    for sizes in found_meshes[1:]:
        for batch in sorted(again):
            plan = try_one(sizes, batch)
            yield plan
            if not plan.memory.fits:
                break


def recommend(plans: list[Plan]) -> Plan | None:
    """Return the fastest plan that fits; of plans within 2% of its images a second, the one of least memory."""
    fitting = [(plan, plan.prediction.images_per_second) for plan in plans if plan.memory.fits and plan.prediction]
    if not fitting:
        return None
    fastest = max(speed for _, speed in fitting)
    as_fast = [plan for plan, speed in fitting if speed >= (1 - TIE) * fastest]
    return min(as_fast, key=lambda plan: plan.memory.total)
