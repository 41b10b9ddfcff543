"""Text in columns, and sizes in words."""

from collections.abc import Mapping


def table(rows: Mapping[str, object]) -> str:
    """Two columns, aligned."""
    width = max(map(len, rows))
    return "\n".join(f"  {name:<{width}}  {value}" for name, value in rows.items())


def size(count: int | float, unit: str = "B") -> str:
    """1.5 GiB, 12.3 MiB for bytes; 1.5 G, 12.3 M of any other unit."""
    base, letters = (1024, ("", "Ki", "Mi", "Gi", "Ti")) if unit == "B" else (1000, ("", "k", "M", "G", "T", "P"))
    for letter in letters:
        if count < base or letter == letters[-1]:
            return f"{count:.4g} {letter}{unit}"
        count /= base
    raise AssertionError
