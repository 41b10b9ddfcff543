"""Configs: Python files with overrides on one side, frozen dataclasses with checked values on the other.

A config file has `get_config(variant="")`, which returns an `ml_collections.ConfigDict`. Files build on each other with
`load_config("demo.py")`. A command names one with `--config FILE[:VARIANT]` and overrides any field with
`--config.optim.lr=1e-4`. `read_config` turns the result into a schema: a frozen dataclass whose fields are values or
other such dataclasses, the sections. Nothing but this module and the config files handles a ConfigDict.
"""

import argparse
import contextvars
import dataclasses
import functools
import pathlib
import runpy
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn, TypeVar

from absl import flags
from ml_collections import ConfigDict, config_flags
from ml_collections.config_dict import placeholder

from fmboost_jax.errors import InputError, printable, shown, some
from fmboost_jax.files import refuse_addresses
from fmboost_jax.registry import choose, import_extensions

T = TypeVar("T")

_LARGEST_FLOAT = sys.float_info.max

# A checkout has the shipped configs beside the package, a wheel has them inside.
_PACKAGE = pathlib.Path(__file__).parent
SHIPPED = _PACKAGE / "configs" if (_PACKAGE / "configs").is_dir() else _PACKAGE.parent / "configs"
# Folder of the config file that is being loaded: names that it loads in turn are relative to it.
_loading: contextvars.ContextVar[pathlib.Path | None] = contextvars.ContextVar("loading", default=None)


# ------------------------------------------------------------------------------------------------------ command lines


def add_import_option(parser: argparse.ArgumentParser) -> None:
    """Add `--import FILE_OR_MODULE` to a command; `registry.import_extensions(arguments.extensions)` imports them."""
    parser.add_argument(
        "--import",
        dest="extensions",
        metavar="FILE_OR_MODULE",
        action="append",
        default=[],
        help="Python file or module to import first; it can add solvers, paths, objectives, networks, autoencoders or "
        "metrics",
    )


def add_share_options(parser: argparse.ArgumentParser) -> None:
    """Add `--process-index` and `--process-count` to a command whose processes do not communicate."""
    parser.add_argument("--process-index", type=int, default=0, help="number of this process, from 0 (default: 0)")
    parser.add_argument("--process-count", type=int, default=1, help="processes that share the work (default: 1)")


def parse_arguments(
    parser: argparse.ArgumentParser,
    argv: list[str],
    schema: type[T],
    *,
    default: str | None = None,
    flag_overrides: Callable[[argparse.Namespace], list[str]] = lambda _: [],
) -> tuple[argparse.Namespace, T]:
    """Parse a command line that names a config, after adding `--config`, its overrides and `--import` to the parser.

    Args:
        parser: the command's own arguments.
        argv: the words after the command's name.
        schema: dataclass of the config.
        default: config of a command line without `--config`; None: the option is required.
        flag_overrides: the overrides that the command's own flags stand for.

    Returns:
        The parser's namespace and the config.

    Raises:
        InputError: a config file that is missing or fails, an unknown field, a value of the wrong type or out of range,
            the address of an object store, an option that is empty.
    """
    parser.add_argument(
        "--config",
        metavar="FILE[:VARIANT]",
        required=default is None,
        default=default,
        help="config file, for example cfm1024.py:x4; override any field: --config.optim.lr=1e-4"
        + (f" (default: {default})" if default else ""),
    )
    add_import_option(parser)
    parser.allow_abbrev = False
    arguments, rest = parser.parse_known_args(argv)
    for name, value in vars(arguments).items():
        if value == "" and parser.get_default(name) != "":
            raise InputError(f"--{name.replace('_', '-')} is empty; give it a value, or leave it out")
    refuse_addresses(vars(arguments))
    import_extensions(arguments.extensions)
    config = read_config(arguments.config, [*rest, *flag_overrides(arguments)], schema)
    refuse_addresses(to_mapping(config), "config.")
    return arguments, config


# ------------------------------------------------------------------------------------------------------- config files


def read_config(name: str, overrides: Sequence[str], schema: type[T]) -> T:
    """Return the config `FILE[:VARIANT]` with overrides as an instance of a dataclass.

    Args:
        name: see `load_config`.
        overrides: see `load_config`.
        schema: dataclass of the config.

    Raises:
        InputError: see `load_config` and `from_mapping`.
    """
    return from_mapping(schema, load_config(name, overrides).to_dict(), f"config {name}")


def load_config(name: str, overrides: Sequence[str] = ()) -> ConfigDict:
    """Load a config file and apply overrides such as `--config.seed=1`.

    Args:
        name: `FILE[:VARIANT]`: the path of a file, or the name of one that comes with fmboost_jax (`cfm1024.py`,
            `configs/cfm1024.py` and `cfm1024` are the same). In a config file, paths are relative to its folder.
        overrides: words of a command line; the field must exist and keeps its type. Of several for one field, the last.

    Returns:
        The config, for other config files to build on; `read_config` returns the checked form.

    Raises:
        InputError: a config file that is missing or fails, an unknown field, a value of the wrong type.
    """
    for word in overrides:
        if word.startswith("-") and not word.startswith("--config."):
            raise InputError(f"unknown argument {word!r}; --help lists the arguments")
    values = flags.FlagValues()
    # ml_collections joins the values of repeated tuples.
    last = {word.partition("=")[0]: number for number, word in enumerate(overrides)}
    words = ["", *(word for n, word in enumerate(overrides) if "=" not in word or last[word.partition("=")[0]] == n)]
    config = _build(name)
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=values, lock_config=False, sys_argv=words)
        positional = values(words)
    except flags.Error as error:
        raise InputError(_innermost(str(error).strip().splitlines()[-1])) from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"config {name}, unknown field or wrong type: {_innermost(error)}") from error
    if len(positional) > 1:
        raise InputError(f"unknown argument {positional[1]!r}; overrides are written --config.field=value")
    return typing.cast(ConfigDict, values["config"].value)


def _build(name: str) -> ConfigDict:
    """What the file's `get_config` returns."""
    file, _, variant = name.partition(":")
    path = _find(file)
    token = _loading.set(path.parent)
    try:
        get_config = runpy.run_path(str(path))["get_config"]
        config = get_config(variant) if variant else get_config()
        if not isinstance(config, ConfigDict):
            raise InputError(f"get_config returned {type(config).__name__}, expected a ConfigDict")
        return config
    # User code may raise any exception; the message has it and the file.
    except Exception as error:
        raise InputError(f"config {name}: {_innermost(error)}") from error
    finally:
        _loading.reset(token)


def _find(name: str) -> pathlib.Path:
    """The file of a config's name."""
    shipped = name.removeprefix("configs/")
    folder = _loading.get() or pathlib.Path()
    for candidate in (folder / name, SHIPPED / shipped, SHIPPED / "protocols" / shipped):
        for path in (candidate, candidate.with_name(f"{candidate.name}.py")):
            if path.is_file():
                return path.absolute()
    raise InputError(f"config file {name!r} does not exist, and none in {SHIPPED} has that name")


def _innermost(message: object) -> str:
    while isinstance(message, Exception) and message.args:
        message = message.args[0]
    return " ".join(str(message).split())


# ------------------------------------------------------------------------------------------------------------ schemas


@dataclasses.dataclass(frozen=True)
class _Choice:
    by: str
    table: Callable[[], Mapping[str, type]]


def chosen_by(field: str, table: Callable[[], Mapping[str, type]]) -> dict[str, Any]:
    """Return the metadata of a field whose section is chosen by another field.

    With `network: str = "unet"` and `architecture = dataclasses.field(metadata=chosen_by("network", …), …)`, the
    architecture comes from the section `unet`. Sections of the table's other entries are allowed and unused.

    Args:
        field: name of the field that chooses.
        table: returns the sections' dataclasses by name.
    """
    return {"choice": _Choice(field, table)}


def from_mapping(schema: type[T], mapping: Any, where: str, hint: str = "") -> T:
    """Construct a dataclass, and those nested in it, from nested dictionaries such as JSON has them.

    Lists become tuples and whole numbers floats where the field wants them. Fields with a default may be absent.

    Args:
        schema: dataclass.
        mapping: values by field name.
        where: origin of the mapping, for messages.
        hint: remedy for a bad value, for messages.

    Raises:
        InputError: unknown or missing fields, a value of another type, or one that the dataclass refuses.
    """

    def fail(message: str) -> NoReturn:
        raise InputError(f"{where}: {message}" + (f"; {hint}" if hint else ""))

    return _dataclass(schema, mapping, "", fail)


def _dataclass(schema: type[T], mapping: Any, prefix: str, fail: Callable[[str], NoReturn]) -> T:
    fields = {field.name: field for field in dataclasses.fields(typing.cast(Any, schema))}
    expected: dict[str, Any] = dict(_types(schema))
    if not isinstance(mapping, Mapping):
        fail(
            f"expected {prefix.rstrip('.') or 'an object'} with the fields {', '.join(fields)}, found {shown(mapping)}"
        )
    keys: dict[str, Any] = {name: name for name in fields}
    unused: set[str] = set()
    for name, field in fields.items():
        if choice := field.metadata.get("choice"):
            keys[name] = mapping.get(choice.by, fields[choice.by].default)
            if not isinstance(keys[name], str):
                fail(f"expected {prefix}{choice.by} as str, found {shown(keys[name])}")
            table = choice.table()
            expected[name] = choose(choice.by, keys[name], table)
            unused |= table.keys()
    known = set(keys.values())
    if unknown := [str(key) for key in mapping if key not in known | unused]:
        fail(f"unknown fields {some([prefix + printable(key) for key in sorted(unknown)], 20)}")
    if missing := [keys[name] for name, field in fields.items() if keys[name] not in mapping and _required(field)]:
        fail(f"missing fields {', '.join(prefix + key for key in missing)}")
    values = {}
    for name, key in keys.items():
        if key in mapping:
            values[name] = _value(expected[name], mapping[key], prefix + key, fail)
        elif "choice" in fields[name].metadata:
            values[name] = expected[name]()
    return schema(**values)


@functools.cache
def _types(schema: type) -> Mapping[str, Any]:
    return typing.get_type_hints(schema)


def _required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _is_dataclass(expected: Any) -> bool:
    return isinstance(expected, type) and dataclasses.is_dataclass(expected)


def _value(expected: Any, value: Any, name: str, fail: Callable[[str], NoReturn]) -> Any:
    """A field's value as its type has it."""
    if _is_dataclass(expected) and not isinstance(value, expected):
        return _dataclass(expected, value, f"{name}.", fail)
    origin, arguments = typing.get_origin(expected), typing.get_args(expected)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _value(next(a for a in arguments if a is not type(None)), value, name, fail)
    if origin is tuple and isinstance(value, (list, tuple)):
        repeated = arguments[-1] is Ellipsis
        if repeated or len(value) == len(arguments):
            of_items = arguments[:1] * len(value) if repeated else arguments
            pairs = zip(of_items, value, strict=True)
            return tuple(_value(item, v, f"{name}[{i}]", fail) for i, (item, v) in enumerate(pairs))
    elif expected is float:
        if type(value) in (int, float) and abs(value) <= _LARGEST_FLOAT:
            return float(value)
    elif expected is int:
        if type(value) is int:
            return value
    elif expected is Any or isinstance(value, origin or typing.cast(type, expected)):
        return value
    label = f"a list such as {_example(expected)}" if origin is tuple else getattr(expected, "__name__", str(expected))
    return fail(f"expected {name} as {label}, found {shown(value)}")


def _example(expected: Any) -> str:
    """A value of a type in words: `(int, …)`."""
    arguments = typing.get_args(expected)
    if typing.get_origin(expected) is not tuple:
        return getattr(expected, "__name__", str(expected))
    return f"({', '.join('…' if a is Ellipsis else _example(a) for a in arguments)})"


def to_mapping(config: Any) -> dict[str, Any]:
    """Return nested dictionaries and lists of a dataclass, which JSON can hold and `from_mapping` reads."""
    return {key: _plain(value) for key, value in _entries(config)}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_mapping(value)
    return [_plain(item) for item in value] if isinstance(value, (tuple, list)) else value


def defaults(schema: type) -> ConfigDict:
    """Return a config with every field of a dataclass at its default, for config files to start from."""
    return _config_dict(schema())


def _config_dict(config: Any) -> ConfigDict:
    result = ConfigDict()
    for key, value in _entries(config):
        # A field that may be None takes overrides of text all the same.
        absent = placeholder(str) if value is None else value
        result[key] = _config_dict(value) if dataclasses.is_dataclass(value) else absent
    return result


def _entries(config: Any) -> Iterator[tuple[str, Any]]:
    """Fields of a dataclass by the names that a config has for them."""
    for field in dataclasses.fields(config):
        choice = field.metadata.get("choice")
        yield getattr(config, choice.by) if choice else field.name, getattr(config, field.name)


def require_at_least(section: str, config: Any, **least: int) -> None:
    """Check fields of a section.

    Args:
        section: its name and a dot, for messages.
        config: the section.
        least: smallest value by field.

    Raises:
        InputError: a value below.
    """
    for name, smallest in least.items():
        if getattr(config, name) < smallest:
            raise InputError(f"{section}{name} is {shown(getattr(config, name))}, expected {smallest} or more")


def require_at_most(section: str, config: Any, **most: int) -> None:
    """Check fields of a section against a largest value, so that no absurd number costs hours or all memory.

    Args:
        section: its name and a dot, for messages.
        config: the section.
        most: largest value by field.

    Raises:
        InputError: a value above.
    """
    for name, largest in most.items():
        if getattr(config, name) > largest:
            raise InputError(f"{section}{name} is {shown(getattr(config, name))}, expected {largest} or less")


def require(section: str, config: Any, name: str, expected: str, holds: bool) -> None:
    """Raise InputError unless `holds`: a section's field has another value than expected."""
    if not holds:
        raise InputError(f"{section}{name} is {shown(getattr(config, name))}, expected {expected}")


def changes(before: Mapping[str, Any], after: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return the fields in which two nested dictionaries differ, one line each: `optim.lr: 0.0001 → 0.0003`."""
    lines = []
    for key in sorted(before.keys() | after.keys()):
        old, new = before.get(key, "(absent)"), after.get(key, "(absent)")
        if isinstance(old, dict) and isinstance(new, dict):
            lines += changes(old, new, f"{prefix}{key}.")
        elif old != new:
            lines.append(f"{prefix}{key}: {old!r} → {new!r}")
    return lines
