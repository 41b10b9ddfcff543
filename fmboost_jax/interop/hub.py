"""Models by name: packaged weights, or an id on the Hugging Face hub, which needs the package `huggingface_hub`."""

import glob
import os
import re

from fmboost_jax.assets import NAMES, packaged_folder
from fmboost_jax.errors import InputError, one_line

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(/[\w./-]+)?")
_PATTERNS = ("config.json", "*.safetensors")


def local_folder(path: str, what: str = "autoencoder") -> str:
    """Return the folder or file of a path, of packaged weights or of a hub id, in this order.

    Args:
        path: a folder, a file, the prefix of files, a name such as `demo-x2`, or `owner/name[/subfolder]`.
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
    patterns = [f"{inner[0]}/{pattern}" if inner else pattern for pattern in _PATTERNS]
    try:
        root = huggingface_hub.snapshot_download(f"{owner}/{name}", allow_patterns=patterns)
    # The client raises many types of errors; all mean that the download failed.
    except Exception as error:
        raise InputError(
            f"{what} {path}: no such folder, and the download from the hub failed ({one_line(error)})"
        ) from error
    return os.path.join(root, *inner)
