"""Models by name: packaged weights, or an id on the Hugging Face hub, which needs the package `huggingface_hub`."""

import glob
import os
import re

from fmboost_jax.assets import NAMES, packaged_folder
from fmboost_jax.errors import InputError, one_line
from fmboost_jax.interop.weights import choose_weights

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(/[\w./-]+)?")
_CONFIG = "config.json"


def local_folder(path: str, what: str = "autoencoder") -> str:
    """Return the folder or file of a path, of packaged weights or of a hub id, in this order.

    Args:
        path: folder, file, prefix of files, a name such as `photo-x2`, or `owner/name[/subfolder]`.
        what: kind of model, for messages. Default: "autoencoder".

    Raises:
        InputError: no such path, name or id, or the hub is unreachable.
    """
    if os.path.exists(path) or glob.glob(f"{glob.escape(path)}_*"):
        return path
    if packaged := packaged_folder(path):
        return packaged
    if not _ID.fullmatch(path):
        raise InputError(f"{what} {path}: no such folder or file; packaged are {', '.join(NAMES)}")
    try:
        import huggingface_hub
    except ImportError as error:
        raise InputError(
            f"{what} {path}: no such folder; to fetch it from the hub: pip install huggingface_hub"
        ) from error
    owner, name, *inner = path.split("/", 2)
    repository = f"{owner}/{name}"
    # The client raises many types of errors; all mean that the download failed.
    try:
        names = repository_files(repository)
    except Exception as error:
        try:
            root = huggingface_hub.snapshot_download(repository, local_files_only=True)
        except Exception:
            raise InputError(
                f"{what} {path}: no such folder, and the download from the hub failed ({one_line(error)}); "
                "fetch it elsewhere and give its folder"
            ) from error
        return os.path.join(root, *inner)
    wanted = _wanted(names, inner[0] if inner else None, f"{what} {path}")
    try:
        return os.path.join(huggingface_hub.snapshot_download(repository, allow_patterns=wanted), *inner)
    except Exception as error:
        raise InputError(f"{what} {path}: the download from the hub failed ({one_line(error)})") from error


def repository_files(repository: str) -> list[str]:
    """Return the names of all files of a repository on the hub, by one request.

    Listing its tree instead repeats a request that fails, with a warning each time, for half a minute.
    """
    import huggingface_hub

    return [file.rfilename for file in huggingface_hub.HfApi().model_info(repository).siblings or ()]


def _wanted(names: list[str], folder: str | None, what: str) -> list[str]:
    """Of a repository's files, one model's config and the weights that `choose_weights` takes; of a pipeline, vae/."""
    folder = ("" if _CONFIG in names else "vae") if folder is None else folder
    prefix = f"{folder}/" if folder else ""
    there = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
    there = [name for name in there if "/" not in name]
    if _CONFIG not in there:
        raise InputError(f"{what}: expected {_CONFIG} in {folder}/ of the repository, found none")
    return [f"{prefix}{name}" for name in (_CONFIG, *choose_weights(there, what))]
