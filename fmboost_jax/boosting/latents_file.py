"""Files of low-res latents: `.npz` and `.npy` of NumPy, and ComfyUI's `.latent`."""

import pathlib
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jaxtyping import Float

from fmboost_jax.errors import InputError, one_line, printable
from fmboost_jax.images.listing import not_a_file
from fmboost_jax.interop.safetensors_file import read_safetensors
from fmboost_jax.models.first_stage import LatentSpec

SUFFIXES = (".npz", ".npy", ".latent")
# A zip archive, also an empty one, and an array of NumPy's.
_MAGIC = (b"PK\x03\x04", b"PK\x05\x06", b"\x93NUMPY")
# ComfyUI files without this key hold Stable Diffusion 1.x latents that are scaled.
_COMFY_VERSION, _COMFY_OLD_SCALE = "latent_format_version_0", 0.18215


def is_latents_file(path: str) -> bool:
    """Whether a path names a file of latents, by its suffix."""
    return pathlib.Path(path).suffix.lower() in SUFFIXES and not pathlib.Path(path).is_dir()


def read_latents(path: str, spec: LatentSpec) -> Float[np.ndarray, "b h w c"]:
    """Read scaled latents.

    Args:
        path: an `.npz` of one array or an `.npy`, scaled latents NHWC; or a `.latent` of ComfyUI, raw latents NCHW.
        spec: the latents that are expected; scales raw ones.

    Raises:
        InputError: a file that cannot be read, or does not hold such an array of real numbers.
    """
    name = printable(path)
    if problem := not_a_file(path):
        raise InputError(f"latents {name} cannot be read: {problem}")
    try:
        array, raw = _read(path)
    except InputError:
        raise
    # A damaged archive raises OSError, ValueError, BadZipFile, zlib.error, EOFError, MemoryError, UnicodeDecodeError, …
    except Exception as error:
        raise InputError(f"latents {name} cannot be read: {one_line(error)}") from error
    if array.dtype == np.dtype("V2"):
        array = array.view(ml_dtypes.bfloat16)  # NumPy stores bfloat16 as two bytes without a type
    if array.dtype.kind not in "fiu" and array.dtype != ml_dtypes.bfloat16:
        raise InputError(f"latents {name} must be real numbers, found {array.dtype}")
    if array.ndim != 4 or not array.size:
        raise InputError(f"latents {name} must be (batch, height, width, {spec.channels}), found {array.shape}")
    array = array.astype(np.float32)
    if raw and spec.normalized:
        raise InputError(
            f"latents {name}: ComfyUI's are raw, this booster's are normalised channel by channel; save normalised "
            "latents (batch, height, width, channels) as .npz"
        )
    return np.asarray(spec.scale(jnp.asarray(array.transpose(0, 2, 3, 1))), np.float32) if raw else array


def _read(path: str) -> tuple[np.ndarray, bool]:
    """The array, and whether it holds raw latents NCHW."""
    suffix = pathlib.Path(path).suffix.lower()
    if suffix == ".latent":
        tensors = read_safetensors(path, "latents")
        if "latent_tensor" not in tensors:
            raise InputError(f"latents {printable(path)}: expected ComfyUI's latent_tensor, found {', '.join(tensors)}")
        old = 1.0 if _COMFY_VERSION in tensors else _COMFY_OLD_SCALE
        return tensors["latent_tensor"].astype(np.float32) / old, True
    with open(path, "rb") as file:
        if not file.read(6).startswith(_MAGIC):
            raise InputError(f"latents {printable(path)}: expected a file of np.savez or np.save, found another format")
    loaded: Any = np.load(path, allow_pickle=False)
    if isinstance(loaded, np.ndarray):
        return loaded, False
    with loaded as file:
        names = list(file)
        if len(names) != 1:
            found = ", ".join(names) or "none"
            raise InputError(f"latents {printable(path)} must hold one array, found {found}")
        array: Any = file[names[0]]
        if not isinstance(array, np.ndarray):
            raise InputError(f"latents {printable(path)} must hold an array, found a file of another kind in it")
        return array, False
