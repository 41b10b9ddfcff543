"""Results as a table, as JSON and as CSV."""

import csv
import io
import json
import math
import pathlib

import numpy as np

from fmboost_jax.files import write_atomically
from fmboost_jax.metrics.table import METRICS

RESULTS, TABLE, IMAGES = "results.json", "results.csv", "images.csv"


def summary(rows: list[dict]) -> dict[str, dict]:
    """Return mean and standard error of every column except the name."""
    columns = [name for name in (rows[0] if rows else {}) if name != "name"]
    result = {}
    for name in columns:
        values = np.array([row[name] for row in rows], np.float64)
        error = None
        if len(values) > 1 and np.isfinite(values).all():
            error = float(values.std(ddof=1) / math.sqrt(len(values)))
        result[name] = {"value": float(values.mean()), "standard_error": error, "images": len(values)}
    return result


def table(results: dict) -> str:
    """Return the results as a table."""
    lines = [("metric", "value", "± standard error", "images")]
    for name, entry in results["metrics"].items():
        error = entry["standard_error"]
        unit = METRICS[name].unit if name in METRICS else ""
        value = f"{float(entry['value']):.4f} {unit}".strip()
        lines.append((name, value, "" if error is None else f"{error:.4f}", str(entry["images"])))
    if results["seconds_an_image"] is not None:
        lines.append(("seconds per image", f"{results['seconds_an_image']:.4f}", "", str(results["images"])))
    widths = [max(len(line[column]) for line in lines) for column in range(4)]
    text = [
        "  ".join(cell.ljust(width) if column == 0 else cell.rjust(width) for column, (cell, width) in enumerate(cells))
        for cells in (list(zip(line, widths, strict=True)) for line in lines)
    ]
    text.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(text)


def write(out: pathlib.Path, results: dict, rows: list[dict]) -> None:
    """Write results.json, results.csv and images.csv. JSON has infinite values as the string "inf"."""
    metrics = results["metrics"]
    entries = [{"metric": name, **entry} for name, entry in metrics.items()]
    write_atomically(out / TABLE, _csv(entries))
    write_atomically(out / IMAGES, _csv(rows))
    write_atomically(out / RESULTS, json.dumps(_finite(results), indent=2, ensure_ascii=False).encode())


def _csv(rows: list[dict]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else ["name"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode("utf-8", "surrogateescape")


def _finite(value):
    """Replace infinite values, which JSON lacks."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
