"""State dicts from the files in which other people keep them: safetensors and PyTorch, whole or in shards."""

import os
import re
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from fmboost_jax.errors import InputError, shown, some
from fmboost_jax.files import read_json
from fmboost_jax.interop.safetensors_file import read_safetensors
from fmboost_jax.interop.torch_file import read_torch_file

_INDEX_SUFFIX = ".index.json"
_SHARD = re.compile(r"(.+)-\d{5}-of-\d{5}(\.\w+)")
# Where training code keeps the weights in a checkpoint.
_SECTIONS = ("state_dict", "model_state_dict", "model", "module")
# Wrappers that PyTorch puts into names: DataParallel, torch.compile, FSDP, activation checkpointing.
_WRAPPERS = frozenset(("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"))
# Files of one folder by preference: diffusers' names in full precision, then in half.
_PREFERRED = (
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.safetensors.index.json",
    "diffusion_pytorch_model.fp16.safetensors",
    "diffusion_pytorch_model.safetensors.index.fp16.json",
    "diffusion_pytorch_model.bin",
    "diffusion_pytorch_model.bin.index.json",
    "diffusion_pytorch_model.fp16.bin",
    "diffusion_pytorch_model.bin.index.fp16.json",
)
# ComfyUI's scaled 8-bit weights: the value is `x.weight` times `x.scale_weight` (`x.weight_scale` in later versions).
# Scales of activations and the file's marks are not used.
_WEIGHT_SCALES = (".scale_weight", ".weight_scale")
_OF_ACTIVATIONS = (".scale_input", ".input_scale")
_MARK, _RECIPE = "scaled_fp8", ".comfy_quant"
_PLACEHOLDERS = {
    b"version https://git-lfs": "a Git LFS pointer, not the file itself; run git lfs pull in its folder",
    b"<!doctype html": "a web page, not the file itself; download it again from the address of the file",
    b"<html": "a web page, not the file itself; download it again from the address of the file",
}


def read_state_dict(path: str) -> dict[str, np.ndarray]:
    """Read the tensors of a safetensors file or of a PyTorch file (gzipped or not), by name.

    Shards are read together: `path` may be their index (`*.index.json`), or one of them with the index beside it. Of a
    checkpoint, the tensors under `state_dict`, `model_state_dict`, `model` or `module`. Values that are not tensors are
    skipped. The parts of names that PyTorch's wrappers add, such as `module.` and `_orig_mod.`, are removed. ComfyUI's
    scaled 8-bit weights are multiplied by their scales, and become float32.

    Raises:
        InputError: a file that is missing, damaged, of another format, without tensors, or that would run code.
    """
    match = _SHARD.fullmatch(path)
    if match and os.path.isfile(index := f"{match[1]}{match[2]}{_INDEX_SUFFIX}"):
        path = index
    if not os.path.isfile(path):
        raise InputError(f"weights {path}: no such file")
    tensors = _read_shards(path) if path.endswith(".json") else read_tensors(path)
    if not tensors:
        raise InputError(f"weights {path}: expected named tensors, found none")
    return _unscaled(without_wrappers(tensors, path), path)


def _unscaled(tensors: dict[str, Any], path: str) -> dict[str, Any]:
    """Multiply ComfyUI's scaled 8-bit weights by their scales, and remove what goes with them."""
    scales = {
        f"{name.removesuffix(end)}.weight": name for name in tensors for end in _WEIGHT_SCALES if name.endswith(end)
    }
    marked = any(name.rpartition(".")[2] == _MARK or name.endswith(_RECIPE) for name in tensors)
    if not scales and not marked:
        return tensors
    weights = {}
    for name, scale_name in scales.items():
        weight, scale = tensors.get(name), tensors[scale_name]
        if weight is None or scale.size != 1 or not str(weight.dtype).startswith("float8"):
            found = "no weight" if weight is None else f"a weight of {weight.dtype} and {scale.size} scales"
            raise InputError(
                f"weights {path}: {scale_name} goes with {found}, expected an 8-bit float weight with one scale; "
                "take the file in 16 or 32 bits"
            )
        weights[name] = weight.astype(np.float32) * np.float32(scale.astype(np.float32).reshape(()))
    without = sorted(name for name in tensors if name.endswith(_RECIPE) and _layer(name) not in map(_layer, scales))
    if without:
        raise InputError(f"weights {path}: quantised without one scale a weight ({some(without)}); take it in 16 bits")
    beside = (*_WEIGHT_SCALES, *_OF_ACTIVATIONS, _RECIPE)
    rest = {n: t for n, t in tensors.items() if not n.endswith(beside) and n.rpartition(".")[2] != _MARK}
    return {name: weights.get(name, tensor) for name, tensor in rest.items()}


def _layer(name: str) -> str:
    return name.rpartition(".")[0]


def read_tensors(path: str) -> dict[str, np.ndarray]:
    """Read one file as `read_state_dict` does, with its names as they are.

    Raises:
        InputError: a file that is missing, damaged, of another format, or that would run code.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(100).lower()
    except OSError as error:
        raise InputError(f"weights {path}: cannot be read ({error.strerror or error})") from error
    for beginning, what in _PLACEHOLDERS.items():
        if start.startswith(beginning):
            raise InputError(f"weights {path}: this is {what}")
    # Content decides, since files are renamed: the header of safetensors is a JSON object behind 8 bytes.
    of_torch = start.startswith((b"pk\x03\x04", b"\x80", b"\x1f\x8b"))
    if start[8:9] == b"{" or (path.endswith(".safetensors") and not of_torch):
        return read_safetensors(path)
    return section_of(read_torch_file(path))


def section_of(content: Any, depth: int = 3) -> dict[str, np.ndarray]:
    """Return the tensors of a checkpoint: those of its first section that holds any, or its own.

    Args:
        content: what the file holds.
        depth: how many sections deep the tensors may be. Default: 3.
    """
    if not isinstance(content, dict) or depth < 0:
        return {}
    for name in _SECTIONS:
        if tensors := section_of(content.get(name), depth - 1):
            return tensors
    return {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, np.ndarray)}


def _read_shards(index: str) -> dict[str, np.ndarray]:
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise InputError(f"weights {index}: expected a weight_map from tensors to files, found none")
    folder, tensors = os.path.dirname(index), {}
    for name in sorted(set(places.values())):
        if os.path.basename(name) != name or name.endswith(".json"):
            raise InputError(f"weights {index}: expected names of files beside it, found {shown(name)}")
        if not os.path.isfile(os.path.join(folder, name)):
            raise InputError(f"weights {index}: its shard {name} is missing; fetch it")
        tensors |= read_tensors(os.path.join(folder, name))
    if absent := sorted(places.keys() - tensors.keys()):
        raise InputError(f"weights {index}: its shards lack {some(absent)}; fetch them again")
    return tensors


def without_wrappers(tensors: Mapping[str, Any], path: str) -> dict[str, Any]:
    """Remove the parts of names that PyTorch's wrappers add.

    Args:
        tensors: a state dict.
        path: where it came from, for the message.

    Raises:
        InputError: two tensors would have one name.
    """
    result = {".".join(part for part in name.split(".") if part not in _WRAPPERS): t for name, t in tensors.items()}
    if len(result) < len(tensors):
        raise InputError(f"weights {path}: it holds a model twice, with and without the prefix of a wrapper; keep one")
    return result


def choose_weights(names: Collection[str], where: str) -> list[str]:
    """Choose the file of weights among the files of one folder.

    Args:
        names: of the files. diffusers' own names come first, safetensors before PyTorch, full precision before half.
        where: the folder, for messages.

    Returns:
        The chosen file; of shards, their index and then the shards.

    Raises:
        InputError: no such file, or several under names that do not tell which one.
    """
    for name in _PREFERRED:
        if name in names:
            return [name, *_shards(name, names)]
    shards = {name for name in names if _SHARD.fullmatch(name)}
    for suffix in (".safetensors.index.json", ".safetensors", ".bin.index.json", ".bin"):
        found = sorted(name for name in names if name.endswith(suffix) and name not in shards and name[0] != ".")
        if len(found) > 1:
            raise InputError(f"{where}: several files of weights, {some(found)}; name one, or leave one there")
        if found:
            return [found[0], *_shards(found[0], names)]
    if shards:
        raise InputError(f"{where}: shards of weights without their index (*{_INDEX_SUFFIX}); fetch it, too")
    raise InputError(f"{where}: no *.safetensors or *.bin beside its config.json")


def _shards(index: str, names: Collection[str]) -> list[str]:
    """The shards of an index: `a.safetensors.index.json` has `a-00001-of-00002.safetensors`."""
    stem, found, rest = index.partition(".safetensors.index" if ".safetensors" in index else ".bin.index")
    suffix, variant = found.removesuffix(".index"), rest.removesuffix(".json")
    return sorted(n for n in names if (match := _SHARD.fullmatch(n)) and match.groups() == (stem + variant, suffix))


def part_of(tensors: Mapping[str, Any], anchor: str, path: str) -> dict[str, Any]:
    """Select one model of a larger checkpoint.

    Args:
        tensors: a state dict.
        anchor: name of a tensor that the model must have. Its name in the state dict gives the model's prefix.
        path: where the state dict came from, for the message.

    Returns:
        The model's tensors under their names in the model; all tensors where none has the anchor's name.

    Raises:
        InputError: several models have it.
    """
    prefixes = {name.removesuffix(anchor) for name in tensors if f".{name}".endswith(f".{anchor}")}
    if len(prefixes) > 1 and "" not in prefixes:
        raise InputError(f"weights {path}: several models fit, under {some(sorted(prefixes))}; save one of them alone")
    return under(min(prefixes, default=""), tensors)


def under(prefix: str, tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Select the tensors whose names start with `prefix`, and remove it from their names."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
