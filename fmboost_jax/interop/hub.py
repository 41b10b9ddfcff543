"""Models by name: of the weights that are packaged, or by their id on the Hugging Face hub, where the network and the
package `huggingface_hub` are there."""

import glob
import os
import re

from fmboost_jax.assets import NAMES, packaged_folder
from fmboost_jax.errors import InputError, one_line

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(/[\w./-]+)?")
_PATTERNS = ("config.json", "*.safetensors")


def local_folder(path: str, what: str = "autoencoder") -> str:
    """`path` itself where it exists or is the prefix of files; else packaged weights; else the folder of a hub id.

    Args:
        path: a folder, a file, the prefix of files, a name such as `demo-x2`, or `owner/name[/subfolder]`.
        what: the thing that lies there, for messages.

    Raises:
        InputError: neither here nor on the hub, or the hub cannot be reached.
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
    # The hub's client fails in as many ways as the network does; all mean the same to the person who waits.
    except Exception as error:
        raise InputError(f"{what} {path}: no such folder, and the hub did not give it ({one_line(error)})") from error
    return os.path.join(root, *inner)
