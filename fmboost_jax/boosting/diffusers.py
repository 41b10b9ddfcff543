"""Any text-to-image pipeline of diffusers as a base model: prompt → latents in PyTorch → boost in JAX.

Needs the extra `[diffusers]`. PyTorch and JAX keep their own devices; latents are exchanged by DLPack, without a copy
on a shared device.
"""

import dataclasses
import os
import pathlib
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from fmboost_jax.boosting.booster import Booster
from fmboost_jax.boosting.latent_formats import pipeline_latents, scaled_latents
from fmboost_jax.boosting.lora import merge_loras
from fmboost_jax.errors import InputError, one_line
from fmboost_jax.interop.hub import repository_files

BACKEND_HELP = "what runs the base model; auto: JAX, or PyTorch for a pipeline that JAX cannot run (default: auto)"
_MISSING = "base models need PyTorch and diffusers: pip install 'fmboost_jax[diffusers]'"


@runtime_checkable
class BaseModel(Protocol):
    """A text-to-image model that returns its latents; PyTorch's is `TorchBase`, JAX's is `Generator`.

    Attributes:
        name: of its folder or hub id.
        backend: "torch" or "jax"; the two draw different noise from one seed.
    """

    name: str
    backend: str

    def latents(
        self,
        prompts: Sequence[str],
        *,
        steps: int | None = None,
        guidance: float | None = None,
        seed: int = 0,
        batch_size: int | None = None,
        height: int | None = None,
        width: int | None = None,
    ) -> Float[Array | np.ndarray, "b h w c"]:
        """Scaled latents; image i draws its noise from seed + i. Height and width are those of the image in pixels."""
        ...


def base_name(base: str | os.PathLike, lora: Sequence[str | os.PathLike] = (), scheduler: str = "") -> str:
    """The last parts of a folder or hub id and of its LoRA files, and the scheduler that replaces its own."""
    parts = [os.path.basename(os.path.normpath(os.fspath(path))) for path in (base, *lora)]
    return " + ".join([*parts, scheduler] if scheduler else parts)


def load_pipeline(base: str, *, on_gpu: bool = True, lora: Sequence[str | os.PathLike] = (), scheduler: str = ""):
    """A diffusers pipeline from a folder or a hub id.

    Args:
        base: the folder or hub id.
        on_gpu: put it on the GPU in half precision where PyTorch has one; otherwise on the CPU in float32.
        lora: LoRA files to merge, see `fmboost_jax.boosting.lora.merge_loras`.
        scheduler: class of diffusers that replaces the pipeline's own, such as "LCMScheduler" for an LCM-LoRA; default:
            its own.

    Raises:
        InputError: diffusers is not installed, there is no such pipeline with safetensors weights, no such scheduler,
            or as for `merge_loras`.
    """
    try:
        import torch
        from diffusers import DiffusionPipeline  # pyright: ignore[reportPrivateImportUsage]: it is imported lazily
    except ImportError as error:
        raise InputError(_MISSING) from error
    device, dtype = ("cuda", torch.float16) if on_gpu and torch.cuda.is_available() else ("cpu", torch.float32)
    variant = "fp16" if _only_in_half_precision(base) else None
    try:
        pipe = DiffusionPipeline.from_pretrained(base, use_safetensors=True, variant=variant)
    # A missing folder, an unreachable hub and unknown components raise exceptions of different types.
    except Exception as error:
        raise InputError(
            f"base model {base}: expected a diffusers pipeline's folder or hub id ({one_line(error)})"
        ) from error
    if scheduler:
        import diffusers

        kind: Any = getattr(diffusers, scheduler, None)
        if not scheduler.endswith("Scheduler") or not hasattr(kind, "from_config"):
            raise InputError(f"scheduler {scheduler!r}: expected a class of diffusers, such as LCMScheduler")
        pipe.scheduler = kind.from_config(pipe.scheduler.config)
    merge_loras(pipe, lora)
    return pipe.to(device, dtype)


def _only_in_half_precision(base: str) -> bool:
    """Whether a pipeline's folder or repository has its networks' weights in half precision alone."""
    if os.path.isdir(base):
        names = [path.name for path in pathlib.Path(base).glob("*/*.safetensors")]
    else:
        try:
            names = repository_files(base)
        except Exception:  # offline, or no such repository: `from_pretrained` says so
            return False
    half = [".fp16" in name for name in names if name.endswith(".safetensors") and "diffusion_pytorch_model" in name]
    return bool(half) and all(half)


def to_jax(tensor: Any) -> Float[Array, "b h w c"]:
    """PyTorch's (b, c, h, w) of any float type → float32 NHWC on JAX's first device, without touching disk."""
    tensor = tensor.detach().contiguous()
    device = jax.local_devices()[0]
    if tensor.device.type == "cuda" and device.platform != "gpu":
        tensor = tensor.cpu()
    shared = jax.device_put(jnp.from_dlpack(tensor), device)
    return jnp.transpose(shared, (0, 2, 3, 1)).astype(jnp.float32)


def prompt_latents(
    pipe: Any, prompt: str | Sequence[str], *, steps: int | None = None, seed: int = 0, **options: Any
) -> Float[Array, "b h w c"]:
    """Run a pipeline to its scaled latents, see `fmboost_jax.boosting.latent_formats`.

    Args:
        pipe: a diffusers pipeline.
        prompt: one, or several for a batch.
        steps: `num_inference_steps`; default: the pipeline's.
        seed: image i draws its noise from a CPU generator of seed + i, so it is the same in any batch, on any device.
        options: for the pipeline's call, such as `guidance_scale`, `negative_prompt`, `height` and `width`.

    Raises:
        InputError: the latents do not have the shape of the pipeline's class.
    """
    try:
        import torch
    except ImportError as error:
        raise InputError(_MISSING) from error
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    if not prompts:
        raise InputError("no prompt: expected one or more")
    count = len(prompts) * options.get("num_images_per_prompt", 1)
    generators = [torch.Generator().manual_seed(seed + i) for i in range(count)]
    if steps is not None:
        options["num_inference_steps"] = steps
    latents = pipe(prompt=prompts, output_type="latent", generator=generators, **options).images
    return to_jax(scaled_latents(pipe, latents, (options.get("height"), options.get("width"))))


class TorchBase:
    """A base model that runs in PyTorch.

    Args:
        pipe: a diffusers pipeline.
        name: of its folder or hub id.
    """

    backend = "torch"

    def __init__(self, pipe: Any, name: str = ""):
        self._pipe, self.name = pipe, name

    def latents(
        self,
        prompts: Sequence[str],
        *,
        steps: int | None = None,
        guidance: float | None = None,
        seed: int = 0,
        batch_size: int | None = None,
        height: int | None = None,
        width: int | None = None,
    ) -> Float[np.ndarray, "b h w c"]:
        """See `BaseModel.latents` and `prompt_latents`."""
        given = {"guidance_scale": guidance, "height": height, "width": width}
        options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        size = batch_size or len(prompts)
        parts = [
            prompt_latents(self._pipe, prompts[first : first + size], steps=steps, seed=seed + first, **options)
            for first in range(0, len(prompts), size)
        ]
        return np.concatenate([np.asarray(part) for part in parts])


def boost_pipeline(
    pipe: Any,
    prompt: str | Sequence[str],
    booster: Booster,
    *,
    base_steps: int | None = None,
    steps: int | None = None,
    method: str | None = None,
    seed: int = 0,
    noise_step: int | None = None,
    batch_size: int | None = None,
    cascade: Sequence[Booster] = (),
    **options: Any,
) -> UInt8[np.ndarray, "b H W 3"]:
    """Prompt → latents → boost → images, decoded with the booster's own consistency, see `Booster.decode_boosted`.

    Args:
        pipe: any diffusers pipeline of images whose autoencoder is the booster's.
        prompt: one, or several for a batch.
        booster: trained for the pipeline's latents.
        base_steps: the base model's steps; default: the pipeline's.
        steps, method, noise_step, batch_size: see `Booster.boost`.
        seed: of the base model and of the boost; image i takes seed + i.
        cascade: further boosters, see `Booster.cascade`.
        options: for the pipeline's call, such as `guidance_scale` and `negative_prompt`.

    Raises:
        InputError: an autoencoder that differs in channels, size or scale (checked first), or diffusers is missing.
    """
    check_pipeline(pipe, booster)
    latents = prompt_latents(pipe, prompt, steps=base_steps, seed=seed, **options)
    given = {"steps": steps, "method": method, "seed": seed, "noise_step": noise_step, "batch_size": batch_size}
    return booster.decode_boosted(booster.cascade(latents, cascade, **given), latents, batch_size=batch_size)


def check_pipeline(pipe: Any, booster: Booster) -> None:
    """Refuse a pipeline whose latents the booster was not trained for.

    A tiny autoencoder (TAESD) encodes to the scaled latents of the KL autoencoder that it imitates, so a KL booster
    takes a pipeline that has it in place of that one: its own scale is 1.

    Raises:
        InputError: another number of channels, downsampling, scale, shift or normalisation; an unknown autoencoder.
    """
    trained, found = booster.first_stage.spec, pipeline_latents(pipe)
    if (
        trained.kind == "kl"
        and found.kind == "AutoencoderTiny"
        and (found.scaling_factor, found.shift_factor) == (1, 0)
    ):
        found = dataclasses.replace(found, scaling_factor=trained.scaling_factor, shift_factor=trained.shift_factor)
    trained.check(found, f"base model {type(pipe).__name__}")
