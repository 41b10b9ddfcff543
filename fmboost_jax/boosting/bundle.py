"""Boost bundles: a trained network with its settings in one folder that can be shared.

    BUNDLE/config.json        network, source, path, factor, sizes, and the autoencoder it was trained for
           unet.safetensors   the averaged weights, by parameter name
           README.md          the model card

`python -m fmboost_jax.export` writes one; `Booster.load` reads it from a folder or a hub id. The autoencoder's weights
are not copied: the bundle names them, and a first stage of other channels or scale is refused.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save

from fmboost_jax.configuration import chosen_by, from_mapping, to_mapping
from fmboost_jax.errors import InputError, shown
from fmboost_jax.files import read_json, write_atomically
from fmboost_jax.flow.coupling import DIFFUSION_STEPS, Coupling
from fmboost_jax.flow.objectives import sampling_objective
from fmboost_jax.interop.weights import read_tensors
from fmboost_jax.models.first_stage import LatentSpec, LatentStatistics
from fmboost_jax.models.networks import NETWORKS, NetworkConfig, abstract_network
from fmboost_jax.models.parameters import Parameters, count, split

CONFIG = "config.json"
WEIGHTS = "unet.safetensors"
FORMAT = "fmboost_jax bundle 1"


def _networks() -> Mapping[str, type]:
    return {name: kind.config for name, kind in NETWORKS.items()}


@dataclasses.dataclass(frozen=True)
class BundleConfig:
    """Contents of `config.json`.

    Attributes:
        architecture: settings of the network; their section in `config.json` has the name `network`, default "unet".
        source: how its flow starts.
        path: "linear" or "gvp", the path it was trained along.
        factor: enlargement.
        low_res, high_res: sizes in pixels of the images it was trained on.
        latents: spec of the autoencoder's latents.
        step: training step of the weights.
        network: key of the network in `NETWORKS`.
        objective: what the network was trained for: an entry of `fmboost_jax.flow.objectives.OBJECTIVES`, with its
            settings. Default: "flow".
        steps: recommended integration steps. Default: 4.
        statistics: of each channel of the high-res latents in the training data. Default: None, not known.
        consistency: recommended share of consistency of boosted latents, see `Booster.decode_boosted`. Default: 0.

    Raises:
        InputError: an objective with another number of times than the network's, or steps that it cannot take.
    """

    architecture: NetworkConfig = dataclasses.field(metadata=chosen_by("network", _networks))
    source: Coupling
    path: str
    factor: int
    low_res: int
    high_res: int
    latents: LatentSpec
    step: int
    network: str = "unet"
    objective: str = "flow"
    steps: int = 4
    statistics: LatentStatistics | None = None
    consistency: float = 0.0

    def __post_init__(self):
        if self.statistics is not None and len(self.statistics.mean) != self.latents.channels:
            found = len(self.statistics.mean)
            raise InputError(f"statistics: expected those of {self.latents.channels} channels, found {found}")
        if self.steps < 1:
            raise InputError(f"steps must be 1 or more, found {self.steps}")
        if not 0 <= self.consistency <= 1:
            raise InputError(f"consistency must be 0 to 1, found {self.consistency}")
        sampling_objective(self.objective, self.architecture.time_inputs).check_steps(self.steps)


_DEFAULTS = {field.name: field.default for field in dataclasses.fields(BundleConfig)}


def is_bundle(folder: str | os.PathLike) -> bool:
    """Whether a folder holds a bundle."""
    return all(os.path.isfile(os.path.join(folder, name)) for name in (CONFIG, WEIGHTS))


def write_bundle(folder: pathlib.Path, parameters: Parameters, config: BundleConfig, dtype: str = "float32") -> None:
    """Fill a folder (see `atomic_folder`) with weights, stored as `dtype`, config and model card."""
    tensors = {name: np.ascontiguousarray(array, dtype) for name, array in parameters.items()}
    write_atomically(folder / WEIGHTS, save(tensors))
    description = {"format": FORMAT, **to_mapping(config)}
    # Version 0.1 refuses newer fields; those with their default value are omitted so that it can read the bundle.
    for name in ("network", "objective", "steps", "statistics", "consistency"):
        if description[name] == _DEFAULTS[name]:
            del description[name]
    if config.source.context_mode is None:
        del description["source"]["context_mode"]
    if not config.latents.inversion_steps:
        del description["latents"]["inversion_steps"]
    write_atomically(folder / CONFIG, json.dumps(description, indent=2).encode())
    write_atomically(folder / "README.md", _model_card(config, count(parameters)).encode())


def read_bundle(folder: str | os.PathLike) -> tuple[Parameters, BundleConfig]:
    """Read weights and config of a bundle.

    Raises:
        InputError: the config or the weights are damaged, or do not fit each other.
    """
    folder = pathlib.Path(folder)
    fields = read_json(folder / CONFIG)
    if fields.pop("format", None) != FORMAT:
        raise InputError(f'{folder / CONFIG}: expected "format": "{FORMAT}", as fmboost_jax.export writes it')
    network = fields.get("network", "unet")
    if not isinstance(network, str):
        raise InputError(f"{folder / CONFIG}: network must be str, found {shown(network)}; export it again")
    config = from_mapping(BundleConfig, fields, str(folder / CONFIG), "export it again")
    tensors = read_tensors(os.path.join(folder, WEIGHTS))
    try:
        expected = {name: shape.shape for name, shape in split(abstract_network(config.architecture))[1].items()}
    except (TypeError, ValueError, ArithmeticError) as error:
        raise InputError(f"{folder / CONFIG}: no network has these settings ({error}); export it again") from error
    found = {name: tensor.shape for name, tensor in tensors.items()}
    if found != expected:
        wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        name = wrong[0]
        raise InputError(
            f"{folder / WEIGHTS}: {len(wrong)} parameters do not fit {CONFIG}, such as {name}: expected "
            f"{expected.get(name, 'none')}, found {found.get(name, 'none')}; download both from the same source"
        )
    return {name: jnp.asarray(tensor, jnp.float32) for name, tensor in tensors.items()}, config


def _model_card(config: BundleConfig, parameters: int) -> str:
    latents, source = config.latents, config.source
    noise = f"noise step {source.noise_step} of {DIFFUSION_STEPS}"
    trained = "" if config.objective == "flow" else f"; trained by {config.objective}"
    upsampling = source.upsampling
    if upsampling == "lsu":
        upsampling += f" (x0 {source.mode}, context {source.context_mode or source.mode})"
    flow = f"{config.path} path from {source.start}, {noise}, {upsampling}{trained}"
    steps = latents.inversion_steps
    inverted = f", {steps} step{'s' * (steps > 1)} of decoder inversion (arXiv 2409.18442)" if steps else ""
    sizes = f"{config.low_res}² → {config.high_res}²"
    return f"""---
library_name: fmboost_jax
pipeline_tag: image-to-image
tags: [flow-matching, super-resolution, image-upscaling, jax]
---
# ×{config.factor} booster, {sizes}

Enlarges latents of a diffusion model, or photographs, by flow matching (arXiv 2312.07360).

| | |
| --- | --- |
| trained on | {sizes} pixels, {config.step:,} steps, averaged weights |
| parameters | {parameters:,} |
| autoencoder | {latents.kind} {latents.path}: {latents.channels} channels, {latents.downsampling}× smaller{inverted} |
| latents' scale | scaled = (latent − {latents.shift_factor}) · {latents.scaling_factor} |
| flow | {flow} |
| recommended steps | {config.steps} |

```python
from fmboost_jax import Booster

booster = Booster.from_pretrained("FOLDER_OR_HUB_ID")
images = booster.upscale(photographs)                    # uint8 (b, h, w, 3)
large = booster.boost(latents, steps={config.steps})                 # scaled latents (b, h, w, {latents.channels})
images = booster.decode_boosted(large, latents)          # uint8
```
"""
