"""LoRA files merged into the weights of a diffusers pipeline."""

import importlib.util
import os
from collections.abc import Sequence
from typing import Any

from fmboost_jax.errors import InputError, one_line

_MISSING = "LoRA files need peft: pip install 'fmboost_jax[generate]'"


def merge_loras(pipe: Any, paths: Sequence[str | os.PathLike]) -> None:
    """Merge LoRA files into a pipeline's networks, by diffusers and peft (W + α/r · B·A, arXiv 2106.09685).

    Args:
        pipe: a diffusers pipeline; its weights change.
        paths: safetensors files, folders or hub ids, of any format that diffusers converts (peft, kohya).

    Raises:
        InputError: peft is missing, no such file, or a LoRA of another model.
    """
    if paths and importlib.util.find_spec("peft") is None:
        raise InputError(_MISSING)
    for path in [os.fspath(path) for path in paths]:
        if not hasattr(pipe, "load_lora_weights"):
            raise InputError(f"LoRA {path}: {type(pipe).__name__} does not support LoRA")
        before = {name: part for name, part in pipe.components.items() if hasattr(part, "named_parameters")}
        options: dict[str, Any] = {"unet_config": pipe.unet.config} if hasattr(pipe, "unet") else {}
        try:
            found = pipe.lora_state_dict(path, use_safetensors=True, **options)
        # A missing file, an unreachable hub and an unknown format raise exceptions of different types.
        except Exception as error:
            raise InputError(f"LoRA {path}: expected a safetensors file or a hub id ({one_line(error)})") from error
        state = found[0] if isinstance(found, tuple) else found
        try:
            pipe.load_lora_weights(path, use_safetensors=True)
        # peft and diffusers find unknown names and other shapes in several places.
        except Exception as error:
            raise _of_another_model(pipe, path, one_line(error)) from error
        given = sum(".lora" in name and not name.endswith(".alpha") for name in state)
        taken = sum(".lora_" in name for part in before.values() for name, _ in part.named_parameters())
        if not 0 < given <= taken:
            raise _of_another_model(pipe, path, f"{taken} of {given} weights match its networks")
        pipe.fuse_lora(components=[name for name in pipe._lora_loadable_modules if name in before])
        pipe.unload_lora_weights()


def _of_another_model(pipe: Any, path: str, reason: str) -> InputError:
    return InputError(f"LoRA {path} was made for another model than {type(pipe).__name__} ({reason})")
