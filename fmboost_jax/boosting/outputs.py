"""The files that a folder run reads and writes: distinct outputs for each input, and no foreign file overwritten."""

import dataclasses
import hashlib
import itertools
import os
import pathlib
import unicodedata
from collections.abc import Iterable, Iterator, Sequence

from fmboost_jax.errors import InputError, printable
from fmboost_jax.files import NAME_BYTES, local_path
from fmboost_jax.images.listing import identity, image_files, not_a_file
from fmboost_jax.images.png import read_settings

# Settings that may differ between two runs whose results are the same: a folder's name, and the file's own content.
_BESIDE = ("checkpoint", "input")


@dataclasses.dataclass(frozen=True)
class Input:
    """A file to boost.

    Attributes:
        name: relative to the folder that was named, with slashes.
        path: where it is.
        target: path of its output without `.png`.
    """

    name: str
    path: str
    target: str

    @property
    def label(self) -> str:
        """The name, printable whatever bytes it has."""
        return printable(self.name)


def output_folder(path: str | os.PathLike) -> str:
    """Make the folder of the outputs.

    Raises:
        InputError: it is a file, or cannot be made or written to.
    """
    path = local_path(path, "the output folder")
    try:
        os.makedirs(path, exist_ok=True)
    except FileExistsError as error:
        raise InputError(f"output folder {path} is a file; name a folder") from error
    except OSError as error:
        raise InputError(f"output folder {path} cannot be made: {error.strerror}") from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise InputError(f"output folder {path} cannot be written to: permission denied")
    return path


def find_inputs(
    paths: Sequence[str | os.PathLike], out: str, extras: Sequence[str] = ()
) -> tuple[list[Input], list[str]]:
    """List the images in paths, each with its own target.

    Of a folder, the files with the suffix of an image format are taken, those in folders below included; hidden files,
    the output folder and results of this program in it or in folders below are left out.

    Args:
        paths: files and folders.
        out: the output folder.
        extras: suffixes of further outputs of one input, such as "_comparison".

    Returns:
        The inputs, and a line for each file or folder that cannot be read.

    Raises:
        InputError: a path that does not exist.
    """
    found: list[tuple[str, str]] = []
    problems: list[str] = []
    for path in (local_path(path, "input") for path in paths):
        if os.path.isdir(path):
            found += sorted(_files_below(path, out, problems))
        elif not os.path.lexists(path):
            raise InputError(f"input {printable(path)}: no such file or folder")
        elif problem := not_a_file(path):
            problems.append(f"{printable(path)}: {problem}")
        else:
            found.append((os.path.basename(path), path))
    # A file that is named twice is one input.
    unique = {os.path.realpath(path): (name, path) for name, path in reversed(found)}
    found = [(name, path) for name, path in found if unique[os.path.realpath(path)] == (name, path)]
    found = list(dict.fromkeys(found))
    targets = distinct_targets([name for name, _ in found], extras)
    inputs = [Input(name, path, os.path.join(out, target)) for (name, path), target in zip(found, targets, strict=True)]
    return inputs, problems


def distinct_targets(names: Sequence[str], extras: Sequence[str] = ()) -> list[str]:
    """Output names without `.png`, so that no two inputs share an output.

    An input's output has its name without suffix where no other input claims it, else with its suffix (`a.jpg.png`),
    else with a number. A name too long for a file system is shortened. Names that differ only in case or Unicode
    normalization are the same to some file systems.

    Args:
        names: of the inputs.
        extras: see `find_inputs`.
    """

    def outputs(target: str) -> set[str]:
        return {unicodedata.normalize("NFC", f"{target}{extra}").casefold() for extra in ("", *extras)}

    longest = NAME_BYTES - len(".png") - max((len(os.fsencode(extra)) for extra in extras), default=0)
    stems = [_fitting(pathlib.PurePosixPath(name).with_suffix("").as_posix(), longest) for name in names]
    claims: dict[str, int] = {}
    for key in itertools.chain.from_iterable(map(outputs, stems)):
        claims[key] = claims.get(key, 0) + 1
    alone = [all(claims[key] == 1 for key in outputs(stem)) for stem in stems]
    taken = set().union(*(outputs(stem) for stem, one in zip(stems, alone, strict=True) if one))
    targets = []
    for name, stem, one in zip(names, stems, alone, strict=True):
        if not one:
            candidates = itertools.chain([name], (f"{name}_{number}" for number in itertools.count(2)))
            fitting = (_fitting(candidate, longest) for candidate in candidates)
            stem = next(candidate for candidate in fitting if not outputs(candidate) & taken)
            taken |= outputs(stem)
        targets.append(stem)
    return targets


def same_settings(path: str, settings: dict) -> bool:
    """Whether a file is a result of this program with these settings, for any input."""
    found = read_settings(path)
    return found is not None and _comparable(found) == _comparable(settings)


def check_outputs(paths: Iterable[str], inputs: Iterable[str], settings: dict) -> None:
    """Refuse to overwrite files that this program with these settings did not write.

    Args:
        paths: the files to be written.
        inputs: the files to be read, which no output may replace.
        settings: of this run.

    Raises:
        InputError: some exist; the message names the first ones.
    """
    sources = {identity(path) for path in inputs}
    blocked = [
        path
        for path in paths
        if os.path.lexists(path) and (identity(path) in sources or not same_settings(path, settings))
    ]
    if blocked:
        named = ", ".join(map(printable, blocked[:3])) + (f" and {len(blocked) - 3} more" if len(blocked) > 3 else "")
        raise InputError(
            f"{len(blocked)} output files exist and were not made by this program with these settings: {named}; "
            "name another output folder, or remove them"
        )


def _comparable(settings: dict) -> dict:
    return {name: value for name, value in settings.items() if name not in _BESIDE}


def _files_below(folder: str, out: str, problems: list[str]) -> Iterator[tuple[str, str]]:
    """Names and paths of the images in a folder and its subfolders, without results of this program."""
    holds_results = identity(folder) == identity(out)
    for name, path in image_files(folder, problems, [identity(out)]):
        if ("/" not in name and not holds_results) or read_settings(path) is None:
            yield name, path


def _fitting(target: str, longest: int) -> str:
    """The target, its last part shortened and made distinct where the file system takes no name so long.

    Args:
        target: with slashes, without `.png`.
        longest: bytes of its last part.
    """
    folder, slash, name = target.rpartition("/")
    if len(os.fsencode(name)) <= longest:
        return target
    digest = hashlib.sha256(os.fsencode(target)).hexdigest()[:8]
    start = os.fsencode(name)[: longest - len(digest) - 1].decode("utf-8", "ignore")
    return f"{folder}{slash}{start}~{digest}"
