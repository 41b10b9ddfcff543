"""Growth of the UNet's time and memory with latent size and batch, for this package and the PyTorch reference model.

    python -m bench growth

The exponents are the slopes of straight lines through the logarithms, fitted by least squares: 1 is growth in
proportion. Memory is the peak during a call above the resident memory before it.
"""

import functools

import numpy as np

from bench.alternation import Implementation, Result, alternate
from bench.networks import Work, sample_ours, sample_torch

LATENTS = (32, 64, 128, 256)
BATCHES = (1, 2, 4, 8, 16)


def growth(weights, config: dict, *, repeats: int) -> str:
    """Two Markdown tables, by size at batch 1 and by batch at the smallest size, with the exponents below."""
    sizes = [Work(weights, config, 1, latent, 1) for latent in LATENTS]
    batches = [Work(weights, config, batch, LATENTS[0], 1) for batch in BATCHES]
    by_size = {f"{work.latent}²": (work.latent**2, work) for work in sizes}
    by_batch = {str(work.batch): (work.batch, work) for work in batches}
    tables = (("at batch 1, by size", by_size), (f"at {LATENTS[0]}×{LATENTS[0]}, by batch", by_batch))
    return "\n\n".join(_table(f"One call {title}", works, repeats) for title, works in tables)


def _table(title: str, works: dict[str, tuple[int, Work]], repeats: int) -> str:
    amounts = [amount for amount, _ in works.values()]
    ways = {"fmboost_jax": sample_ours, "PyTorch model, eager, channels last": _torch}
    found: dict[str, list[Result]] = {name: [] for name in ways}
    for _, work in works.values():
        implementations = [Implementation(name, functools.partial(way, work)) for name, way in ways.items()]
        for result in alternate(implementations, repeats=repeats):
            found[result.name].append(result)
    heads = [f"{name}, {unit}" for name in ways for unit in ("s", "GiB")]
    lines = [f"### {title}", "", f"| | {' | '.join(heads)} |", f"|{' --- |' * (1 + len(heads))}"]
    for place, name in enumerate(works):
        cells = [
            f"{value:.3f} | {passing:.3f}"
            for value, passing in ((rows[place].seconds, rows[place].passing) for rows in found.values())
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    exponents = [
        f"{exponent(amounts, [row.seconds for row in rows]):.2f} | "
        f"{exponent(amounts, [row.passing for row in rows]):.2f}"
        for rows in found.values()
    ]
    return "\n".join([*lines, f"| exponent | {' | '.join(exponents)} |"])


def exponent(amounts, costs) -> float:
    """Slope of log(cost) over log(amount); NaN where a cost is not positive."""
    if min(costs) <= 0 or not np.all(np.isfinite(costs)):
        return float("nan")
    return float(np.polyfit(np.log(amounts), np.log(costs), 1)[0])


def _torch(work: Work):
    return sample_torch(work, channels_last=True)
