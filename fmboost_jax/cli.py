"""The entry point `fmboost`: every command of this package as a sub-command.

    fmboost sample photo.jpg            the same as python -m fmboost_jax.sample --input photo.jpg
    fmboost sample --help               options of one command, with examples
    fmboost completion bash             a completion script for the shell

A command's module is imported when it is called, so that `fmboost --help` starts without JAX.
"""

import argparse
import contextlib
import importlib
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple, NoReturn
from unittest import mock

from fmboost_jax import __version__
from fmboost_jax.errors import InputError, run
from fmboost_jax.registry import choose


class Command(NamedTuple):
    """A sub-command.

    Attributes:
        summary: description for the list of commands.
        positional: the option that takes the words before the first option, as in `fmboost sample photo.jpg`.
    """

    summary: str
    positional: str | None = None


COMMANDS = {
    "sample": Command("boost photographs, latents, or a diffusion model's latents of a prompt", "--input"),
    "web": Command("boost photographs in a browser, on this machine"),
    "precompute": Command("encode photographs to pairs of latents, the training data", "--images"),
    "train": Command("train a booster", "--config"),
    "train_autoencoder": Command("train a small autoencoder", "--config"),
    "evaluate": Command("compare boosted images with their originals by a named protocol"),
    "export": Command("make a bundle of a training run, to share", "--checkpoint"),
    "convert": Command("convert weights from and to PyTorch"),
    "plan": Command("predict memory, step time and MFU of a run on TPUs; needs no TPU"),
}

EXAMPLES = """\
first steps:
  fmboost sample photo.jpg                          boosted/photo.png, twice as large
  fmboost sample photo.jpg --booster photo-x4       four times as large; photo-x4-looks: with more texture
  fmboost web                                       the same in a browser

train your own:
  fmboost precompute photographs --config cfm1024 --out data
  fmboost train cfm1024 --config.data.dir=data --workdir run
  fmboost export run --out bundle
  fmboost sample photo.jpg --booster bundle

fmboost COMMAND --help describes the options of a command, with more examples. The commands also run as
python -m fmboost_jax.COMMAND. Shell completion, for bash (zsh and tcsh likewise):
  fmboost completion bash > ~/.local/share/bash-completion/completions/fmboost
"""


def main(argv: list[str] | None = None) -> None:
    """Run one sub-command.

    Args:
        argv: the words after `fmboost`; default: those of the command line.

    Raises:
        InputError: an unknown command, or input that the command refuses.
        SystemExit: after `--help` and `--version`, and where the command's own parser refuses its options.
    """
    name, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name.startswith("-"):
        _parser().parse_args([name])
        raise InputError("name a command first; fmboost --help lists them")
    if name == "completion":
        print(_completion(rest))
        return
    name = name.replace("-", "_")
    command = choose("command", name, COMMANDS)
    importlib.import_module(f"fmboost_jax.{name}").main(_arguments(command, rest))


def entry_point() -> None:
    """Run `fmboost`; an `InputError` becomes one line and exit code 2."""
    run(main)


def _arguments(command: Command, words: list[str]) -> list[str]:
    """The command's own arguments: words before the first option belong to its positional option."""
    if command.positional is None or not words or words[0].startswith("-"):
        return words
    return [command.positional, *words]


def _parser() -> argparse.ArgumentParser:
    width = max(map(len, COMMANDS)) + 2
    commands = "\n".join(f"  {name:{width}}{command.summary}" for name, command in COMMANDS.items())
    parser = argparse.ArgumentParser(
        "fmboost",
        usage="fmboost COMMAND [OPTIONS]",
        description="Boost small latents and photographs to large ones by flow matching.",
        epilog=f"commands:\n{commands}\n\n{EXAMPLES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"fmboost_jax {__version__}")
    return parser


def _completion(words: list[str]) -> str:
    """The completion script of a shell."""
    try:
        import shtab
    except ImportError as error:
        raise InputError("fmboost completion needs shtab: pip install shtab") from error
    if len(words) != 1 or words[0] not in shtab.SUPPORTED_SHELLS:
        raise InputError(f"fmboost completion takes one of {', '.join(shtab.SUPPORTED_SHELLS)}")
    parser = _parser()
    commands = parser.add_subparsers(metavar="COMMAND")
    for name, command in COMMANDS.items():
        options = _parser_of(name)
        # `parents` copies a parser's options; its sub-commands, as convert has them, come along.
        added = commands.add_parser(name, help=command.summary, parents=[options], add_help=False)
        if command.positional is not None:
            added.add_argument("files", nargs="*").complete = shtab.FILE  # pyright: ignore[reportAttributeAccessIssue]
    return shtab.complete(parser, shell=words[0])


def _parser_of(name: str) -> argparse.ArgumentParser:
    """The parser of a command, as the command makes it before it reads its first argument."""
    with _parsers_caught() as caught, contextlib.suppress(_CaughtError):
        importlib.import_module(f"fmboost_jax.{name}").main([])
    return caught[0]


class _CaughtError(Exception):
    """Raised in place of parsing, to end a command after it has built its parser."""


@contextlib.contextmanager
def _parsers_caught() -> Iterator[list[argparse.ArgumentParser]]:
    caught = []

    def catch(parser: argparse.ArgumentParser, *_: Any, **__: Any) -> NoReturn:
        caught.append(parser)
        raise _CaughtError

    with mock.patch.object(argparse.ArgumentParser, "parse_known_args", catch):
        yield caught
