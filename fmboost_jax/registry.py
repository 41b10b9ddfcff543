"""Tables of named components: look-up, construction from a short text, extensions.

A table is a dictionary from names to components. A text names an entry and, in parentheses, its settings:
`"gvp"`, `"linear(sigma_min=0.001)"`. A file named with `--import` adds further entries.
"""

import ast
import dataclasses
import importlib
import importlib.util
import pathlib
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TypeVar

from fmboost_jax.errors import InputError, one_line, shown

T = TypeVar("T")


def unknown(what: str, name: object, names: Collection[str | None]) -> InputError:
    """The error for an unknown name."""
    return InputError(
        f"{what} {shown(name)} is unknown; expected one of {', '.join(str(key) or repr(key) for key in names)}"
    )


def check_name(what: str, name: object, names: Collection[str | None]) -> None:
    """Raise an error for an unknown name.

    Args:
        what: what is named, for the message.
        name: the name.
        names: those that are known.

    Raises:
        InputError: another name; the message lists the known ones.
    """
    if name not in names:
        raise unknown(what, name, names)


def choose(what: str, name: str, table: Mapping[str, T]) -> T:
    """Return the entry of a table.

    Args:
        what: what the table holds, for the message.
        name: key of the entry.
        table: entries by name.

    Raises:
        InputError: the table has no such entry; the message lists those that it has.
    """
    check_name(what, name, tuple(table))
    return table[name]


def build(what: str, text: str, table: Mapping[str, Callable[..., T]]) -> T:
    """Construct what a text such as `"linear(sigma_min=0.001)"` describes.

    Args:
        what: what the table holds, for messages.
        text: a name, with keyword arguments in parentheses where it has settings. Values are Python literals.
        table: constructors by name, as a rule frozen dataclasses.

    Raises:
        InputError: a text that is no such call, an unknown name, unknown settings, or values that are refused.
    """
    expected = f"expected a name, with settings such as name(setting=1.0); names are {', '.join(table)}"
    try:
        call = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, AttributeError, RecursionError, MemoryError):
        raise InputError(f"{what} {text!r}: {expected}") from None
    if isinstance(call, ast.Name):
        return choose(what, call.id, table)()
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.args:
        raise InputError(f"{what} {text!r}: {expected}")
    constructor = choose(what, call.func.id, table)
    try:
        settings = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
        return constructor(**_as_floats(constructor, settings))
    except InputError:
        raise
    except (TypeError, ValueError) as error:
        raise InputError(f"{what} {text!r}: {one_line(error)}") from error


def _as_floats(constructor: object, settings: dict[str, object]) -> dict[str, object]:
    """Whole numbers become floats where a dataclass has a field of floats."""
    fields = dataclasses.fields(constructor) if dataclasses.is_dataclass(constructor) else ()
    floats = {field.name for field in fields if field.type in (float, "float")}
    return {name: float(value) if name in floats and type(value) is int else value for name, value in settings.items()}


def import_extensions(names: Iterable[str]) -> None:
    """Import modules that add entries to the tables.

    Args:
        names: a file that ends in `.py`, or a module's dotted name, each.

    Raises:
        InputError: a file or module that is missing or fails.
    """
    for name in names:
        try:
            if not name.endswith(".py"):
                importlib.import_module(name)
                continue
            path = pathlib.Path(name)
            spec = importlib.util.spec_from_file_location(path.stem, path)
            if spec is None or spec.loader is None:
                raise ImportError(f"cannot load {name} as a module")
            module = importlib.util.module_from_spec(spec)
            sys.modules.setdefault(path.stem, module)
            spec.loader.exec_module(module)
        # User code may raise any exception; the message has it and the file.
        except Exception as error:
            raise InputError(f"extension {name} cannot be imported: {one_line(error)}") from error
