"""Command lines with a config: `--config FILE[:VARIANT]`, any field overridden as `--config.optim.lr=1e-4`.

Configs are Python files with `get_config(variant="")` that returns an `ml_collections.ConfigDict`. A config reads as a
document; what it may hold is what `configs/demo.py` holds, with the same types.
"""

import argparse
import os
import pathlib
import sys

from absl import flags
from ml_collections import ConfigDict, config_flags

from fmboost_jax.errors import InputError


def parse_arguments(parser: argparse.ArgumentParser, argv: list[str]) -> tuple[argparse.Namespace, ConfigDict]:
    """Parse a command line whose parser gets `--config` and its overrides added.

    Args:
        parser: the command's own arguments.
        argv: the words after the command's name.

    Returns:
        The parser's namespace and the locked config with every override applied.

    Raises:
        InputError: a config file that is missing or fails, an unknown field, a value of the wrong type.
    """
    parser.add_argument(
        "--config",
        metavar="FILE[:VARIANT]",
        required=True,
        help="experiment to run, for example configs/cfm1024.py:x4; override any field: --config.optim.lr=1e-4",
    )
    parser.allow_abbrev = False
    arguments, rest = parser.parse_known_args(argv)
    return arguments, load_config(arguments.config, rest)


def load_config(config: str, overrides: list[str] | tuple[str, ...] = ()) -> ConfigDict:
    """The config of `FILE[:VARIANT]` with overrides such as `--config.seed=1` applied.

    Raises:
        InputError: see `parse_arguments`.
    """
    path = config.partition(":")[0]
    if not os.path.isfile(path):
        raise InputError(f"config file {path!r} does not exist; see configs/ for those that come with fmboost_jax")
    for word in overrides:
        if word.startswith("-") and not word.startswith("--config."):
            raise InputError(f"unknown argument {word!r}; --help lists what there is")
    # Configs build on each other: `from configs import demo`, `from configs.protocols import folders`.
    parents = pathlib.Path(path).absolute().parents
    root = str(next((folder.parent for folder in parents if folder.name == "configs"), parents[1]))
    if root not in sys.path:
        sys.path.insert(0, root)
    values = flags.FlagValues()
    words = ["", f"--config={config}", *overrides]
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=words)
    try:
        positional = values(words)
    except flags.Error as error:
        raise InputError(_one_line(str(error).strip().splitlines()[-1])) from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"config {config}, unknown or unfit field: {_one_line(error)}") from error
    except ImportError as error:
        raise InputError(f"config {config} cannot be imported: {_one_line(error)}") from error
    if len(positional) > 1:
        raise InputError(f"unknown argument {positional[1]!r}; overrides are written --config.field=value")
    return values["config"].value


def _one_line(message: object) -> str:
    while isinstance(message, Exception) and message.args:
        message = message.args[0]
    return " ".join(str(message).split())


def changes(before: dict, after: dict, prefix: str = "") -> list[str]:
    """The fields in which two nested dicts differ, one line each: `optim.lr: 0.0001 → 0.0003`."""
    lines = []
    for key in sorted(before.keys() | after.keys()):
        old, new = before.get(key, "(absent)"), after.get(key, "(absent)")
        if isinstance(old, dict) and isinstance(new, dict):
            lines += changes(old, new, f"{prefix}{key}.")
        elif old != new:
            lines.append(f"{prefix}{key}: {old!r} → {new!r}")
    return lines
