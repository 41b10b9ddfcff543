"""Which backend runs a base model: JAX where it can, otherwise PyTorch."""

import os
import sys
from collections.abc import Sequence
from typing import Any

import jax

from fmboost_jax.boosting.booster import Booster
from fmboost_jax.boosting.diffusers import BaseModel, TorchBase, base_name, check_pipeline, load_pipeline
from fmboost_jax.errors import InputError
from fmboost_jax.generation.generator import Generator
from fmboost_jax.registry import choose

BACKENDS = {"auto": "JAX, or PyTorch for what JAX cannot run", "jax": "JAX alone", "torch": "PyTorch alone"}


def load_base(
    base: str,
    boosters: Sequence[Booster],
    backend: str = "auto",
    *,
    devices: Sequence[jax.Device] | None = None,  # pyright: ignore[reportInvalidTypeForm]: a variable in its stubs
    lora: Sequence[str | os.PathLike] = (),
    scheduler: str = "",
    quiet: bool = False,
) -> BaseModel:
    """Load a base model. Where "auto" takes PyTorch, one line on stderr says why.

    Args:
        base: folder or hub id of a diffusers pipeline.
        boosters: those that follow it.
        backend: a key of `BACKENDS`.
        devices: of JAX; default: the first one. It computes in float32 on CPUs, in bfloat16 elsewhere.
        lora, scheduler: see `fmboost_jax.boosting.diffusers.load_pipeline`.
        quiet: no progress bars of diffusers.

    Raises:
        InputError: an unknown backend, no such pipeline, another autoencoder than the boosters'; with "jax": a pipeline
            that JAX cannot run, or torchax is missing or too old. As for `load_pipeline`.
    """
    choose("base backend", backend, BACKENDS)
    changes: dict[str, Any] = {"lora": lora, "scheduler": scheduler}
    name = base_name(base, lora, scheduler)
    pipe = load_pipeline(base, on_gpu=backend == "torch", **changes)
    check_pipeline(pipe, boosters[0])
    if backend != "torch":
        platform = (jax.devices() if devices is None else devices)[0].platform
        dtype = "float32" if platform == "cpu" else "bfloat16"
        try:
            return Generator(pipe, boosters, dtype=dtype, devices=devices, name=name)
        except InputError as error:
            if backend == "jax":
                raise
            print(f"base model in PyTorch: {error}", file=sys.stderr, flush=True)
            pipe = load_pipeline(base, **changes)
    if quiet:
        pipe.set_progress_bar_config(disable=True)
    return TorchBase(pipe, name)
