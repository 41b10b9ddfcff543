"""Which batch and mesh: plans of several, and the one to take."""

from collections.abc import Callable, Iterable, Iterator

from fmboost_jax.planning.report import Plan

BATCHES = (1, 2, 4, 8, 16, 32, 64)
# Speeds that differ by less count as one: the batch that needs less memory wins.
TIE = 0.02

Sizes = dict[str, int]
Try = Callable[[Sizes, int], Plan]


def meshes(chips: int, first: Sizes) -> list[Sizes]:
    """The meshes to try: the config's own, then parameters sharded over all chips, over four, height over two."""
    candidates = [
        first,
        {"data": 1, "fsdp": chips, "spatial": 1},
        {"data": chips // 4, "fsdp": 4, "spatial": 1},
        {"data": chips // 2, "fsdp": 1, "spatial": 2},
    ]
    fitting = [sizes for sizes in candidates if sizes["data"] * sizes["fsdp"] * sizes["spatial"] == chips]
    return [sizes for i, sizes in enumerate(fitting) if sizes not in fitting[:i]]


def sweep(try_one: Try, found_meshes: list[Sizes], batches: Iterable[int] = BATCHES) -> Iterator[Plan]:
    """Plans, each as soon as it is made.

    The first mesh gets batches that grow until one does not fit; the others get its best batch, and the one that did
    not fit, since they may have room for it.

    Args:
        try_one: the plan of a mesh and a batch a chip.
        found_meshes: see `meshes`.
        batches: a chip, ascending.
    """
    own: list[Plan] = []
    for batch in batches:
        own.append(try_one(found_meshes[0], batch))
        yield own[-1]
        if not own[-1].memory.fits:
            break
    best = recommend(own)
    again = {int(plan.batch_per_chip) for plan in own if plan is best or not plan.memory.fits}
    for sizes in found_meshes[1:]:
        for batch in sorted(again):
            plan = try_one(sizes, batch)
            yield plan
            if not plan.memory.fits:
                break


def recommend(plans: list[Plan]) -> Plan | None:
    """The fastest that fits, in images a second; of those that are as fast the one of least memory."""
    fitting = [(plan, plan.prediction.images_per_second) for plan in plans if plan.memory.fits and plan.prediction]
    if not fitting:
        return None
    fastest = max(speed for _, speed in fitting)
    as_fast = [plan for plan, speed in fitting if speed >= (1 - TIE) * fastest]
    return min(as_fast, key=lambda plan: plan.memory.total)
