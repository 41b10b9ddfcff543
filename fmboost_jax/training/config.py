"""Training configs: frozen dataclasses, checked on construction; `configs/demo.py` explains each field.

Defaults are the paper's (arXiv 2312.07360) where it gives a value; `configs/cfm1024.py` marks the others.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from fmboost_jax.configuration import (
    chosen_by,
    from_mapping,
    require,
    require_at_least,
    require_at_most,
    to_mapping,
)
from fmboost_jax.data.crops import CropsConfig
from fmboost_jax.data.dataset import DataConfig
from fmboost_jax.errors import InputError
from fmboost_jax.flow.coupling import DIFFUSION_STEPS, Coupling
from fmboost_jax.flow.objectives import make_objective, recommended_steps
from fmboost_jax.flow.paths import make_path
from fmboost_jax.flow.solvers import METHODS
from fmboost_jax.images.resize import MODES
from fmboost_jax.models.autoencoder_tiny import AutoencoderTinyConfig
from fmboost_jax.models.first_stage import FirstStageConfig
from fmboost_jax.models.networks import NETWORKS, NetworkConfig
from fmboost_jax.models.unet import UNetConfig
from fmboost_jax.parallel.mesh import MeshConfig
from fmboost_jax.registry import choose
from fmboost_jax.training.ema import EmaConfig
from fmboost_jax.training.finish import FinishConfig
from fmboost_jax.training.optimizer import MuonConfig, OptimConfig

# Behaviour of version 0.1 for fields that its configs lack.
_VERSION_0_1 = {"optim": {"warmup_offset": 0}, "ema": {"takes_in": "after"}}

T = TypeVar("T")


def read_saved(schema: type[T], mapping: Mapping[str, Any], where: str) -> T:
    """Return the config that a checkpoint holds; fields that it lacks have the behaviour of the version that wrote it.

    Args:
        schema: `TrainingConfig` or `AutoencoderTrainingConfig`.
        mapping: the saved config.
        where: what it was read from, for messages.

    Raises:
        InputError: see `fmboost_jax.configuration.from_mapping`.
    """
    present = to_mapping(schema())
    absent = {
        section: {name: value for name, value in fields.items() if name in present[section]}
        for section, fields in _VERSION_0_1.items()
    }
    return from_mapping(schema, {**mapping, **{name: absent[name] | mapping.get(name, {}) for name in absent}}, where)


@dataclasses.dataclass(frozen=True)
class SourceConfig:
    """Section `source`: where the flow starts.

    Attributes:
        start: "low_res" (the upsampled latent, noise-augmented) or "noise".
        noise_step: diffusion step of the noise augmentation.
        mode: how latents are upsampled with `data.upsampling` "lsu".
        context_mode: how the context is upsampled with "lsu". Default: None, as `mode`.
    """

    start: str = "low_res"
    noise_step: int = 400
    mode: str = "bilinear"
    context_mode: str | None = None

    def __post_init__(self):
        if self.start not in ("low_res", "noise"):
            raise InputError(f'source.start is {self.start!r}, expected "low_res" or "noise"')
        holds = 0 <= self.noise_step < DIFFUSION_STEPS
        require("source.", self, "noise_step", f"0 to {DIFFUSION_STEPS - 1}", holds)
        for name in ("mode", "context_mode"):
            value = getattr(self, name)
            if value not in MODES and (name, value) != ("context_mode", None):
                raise InputError(f"source.{name} is {value!r}, expected one of {', '.join(MODES)}")


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    """Section `train`: length of the run.

    Attributes:
        steps: updates in all.
        batch_size: examples an update, over all devices.
        log_every: updates from one line of `metrics.jsonl` to the next.
        nan_patience: consecutive updates with a loss that is not finite after which the run ends.
        tracker: experiment tracker that also records the metrics: "wandb" or "trackio". Default: "", none.
    """

    steps: int = 1_000_000
    batch_size: int = 256
    log_every: int = 100
    nan_patience: int = 3
    tracker: str = ""

    def __post_init__(self):
        require_at_least("train.", self, steps=1, batch_size=1, log_every=1, nan_patience=1)


@dataclasses.dataclass(frozen=True)
class TrainConfig(LoopConfig):
    """Section `train` of the flow's training.

    Attributes:
        init_from: bundle, packaged name or run whose averaged weights to start from; "" for fresh weights.
    """

    init_from: str = ""


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """Section `checkpoint`.

    Attributes:
        every: updates from one checkpoint to the next.
        keep: number of recent checkpoints that are kept.
        keep_every: checkpoints whose step is a multiple of this are also kept; 0 for none.
    """

    every: int = 10_000
    keep: int = 3
    keep_every: int = 0

    def __post_init__(self):
        require_at_least("checkpoint.", self, every=1, keep=1, keep_every=0)


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """Section `evaluate`: held-out latents boosted with the averaged weights.

    Attributes:
        every: updates from one evaluation to the next; 0 for none.
        dir: dataset of held-out latents; the training data's where empty.
        photographs: folder that this dataset was made of, to compare with the photographs as well as with the decoded
            latents; "" for the latents alone.
        images: pairs to boost.
        method, steps: how the flow is integrated.
    """

    every: int = 5_000
    dir: str = ""
    photographs: str = ""
    images: int = 64
    method: str = "rk4"
    steps: int = 39

    def __post_init__(self):
        require_at_least("evaluate.", self, every=0, images=1, steps=1)
        if self.method not in METHODS:
            raise InputError(f"evaluate.method is {self.method!r}, expected one of {', '.join(METHODS)}")


@dataclasses.dataclass(frozen=True)
class ProcessesConfig:
    """Section `processes`.

    Attributes:
        timeout: seconds without a heartbeat of one process after which all others exit.
    """

    timeout: int = 60

    def __post_init__(self):
        require_at_least("processes.", self, timeout=1)


@dataclasses.dataclass(frozen=True)
class ProfileConfig:
    """Section `profile`.

    Attributes:
        steps: first and last update of a trace; empty for no trace.
    """

    steps: tuple[int, ...] = ()

    def __post_init__(self):
        steps = self.steps
        holds = not steps or (len(steps) == 2 and 1 <= steps[0] <= steps[1])
        require("profile.", self, "steps", "the first and the last step, such as 10,20", holds)


def _check_seed(config: Any) -> None:
    """Refuse seeds of more than 32 bits: without 64-bit integers JAX drops their upper half."""
    require_at_least("", config, seed=0)
    require_at_most("", config, seed=2**32 - 1)


def _networks() -> Mapping[str, type]:
    return {name: kind.config for name, kind in NETWORKS.items()}


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """Config of `fmboost_jax.train`, and of the commands that need a part of it.

    Attributes:
        seed: of weights, batches, noise and times; 0 to 2^32 − 1.
        path: entry of the table of paths, with its settings: "linear(sigma_min=0.001)".
        objective: entry of the table of objectives, with its settings: "flow(time='logit_normal')".
        network: entry of the table of networks; the section of that name has its settings.
        architecture: these settings; in config files the section is called `unet`, or as `network` says.
        compilation_cache: folder of compiled programs, "auto" or "", see `fmboost_jax.runtime.compilation`.
    """

    seed: int = 0
    first_stage: FirstStageConfig = dataclasses.field(default_factory=FirstStageConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    source: SourceConfig = dataclasses.field(default_factory=SourceConfig)
    path: str = "linear"
    objective: str = "flow"
    network: str = "unet"
    architecture: NetworkConfig = dataclasses.field(
        default_factory=UNetConfig, metadata=chosen_by("network", _networks)
    )
    finish: FinishConfig = dataclasses.field(default_factory=FinishConfig)
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
    ema: EmaConfig = dataclasses.field(default_factory=EmaConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)
    evaluate: EvaluateConfig = dataclasses.field(default_factory=EvaluateConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    processes: ProcessesConfig = dataclasses.field(default_factory=ProcessesConfig)
    profile: ProfileConfig = dataclasses.field(default_factory=ProfileConfig)
    compilation_cache: str = "auto"

    def __post_init__(self):
        _check_seed(self)
        choose("network", self.network, _networks())
        make_path(self.path)
        source, upsampling = self.source, self.data.upsampling
        if source.context_mode is not None and upsampling != "lsu":
            raise InputError(
                f"source.context_mode is {source.context_mode!r}, expected none with data.upsampling={upsampling!r}: "
                "latents that were upsampled in pixels have the large size"
            )
        needed, found = make_objective(self.objective).time_inputs, self.architecture.time_inputs
        if needed != found:
            raise InputError(
                f"objective {self.objective} needs a network with {needed} time input(s), found {found}: set "
                f"{self.network}.time_inputs={needed}"
            )

    @property
    def recommended_steps(self) -> int:
        """Steps to sample with: 1 for a map for one step (`finish.velocity` 0), else what the objective recommends."""
        return recommended_steps(make_objective(self.objective)) if self.finish.velocity else 1

    @property
    def coupling(self) -> Coupling:
        """How the flow starts, with the upsampling that the data has."""
        source = self.source
        return Coupling(source.start, source.noise_step, self.data.upsampling, source.mode, source.context_mode)


@dataclasses.dataclass(frozen=True)
class AutoencoderLossConfig:
    """Section `loss` of an autoencoder's config, see `fmboost_jax.training.autoencoder.reconstruction_loss`.

    Attributes:
        scales: sizes 1, 1/2, 1/4, …, at which images are compared.
        gradient: weight of their gradients beside L1.
        deviation: of the latents.
        moments: weight of the latents' distance from mean 0 and that deviation, and of their correlations.
        enlarged: weight of how enlarged latents decode.
        blurred: weight of the error of the round trip of enlarged small images, which flows start from.
        boosted: weight of how boosted latents decode, see `train.boosters`.
        rmse: weight of each image's root mean square error, averaged over images.
        latent_noise: standard deviation of the noise that the decoder gets.
        perceptual: weight of the distance in the first feature maps of efficientnet-lite0, see `perceptual_distance`.
    """

    scales: int = 4
    gradient: float = 0.25
    deviation: float = 0.5
    moments: float = 0.002
    enlarged: float = 0.1
    blurred: float = 0.0
    boosted: float = 1.0
    rmse: float = 0.0
    latent_noise: float = 0.02
    perceptual: float = 0.0

    def __post_init__(self):
        weights = ("gradient", "moments", "enlarged", "blurred", "boosted", "rmse", "latent_noise", "perceptual")
        require_at_least("loss.", self, scales=1, **dict.fromkeys(weights, 0))
        require("loss.", self, "deviation", "more than 0", self.deviation > 0)


@dataclasses.dataclass(frozen=True)
class AutoencoderTrainConfig(LoopConfig):
    """Section `train` of an autoencoder's training.

    Attributes:
        init_from: folder of an autoencoder of the same architecture to start from; "" for the best linear code.
        decoder_only: do not train the encoder, so that latents do not change.
        boosters: boosters of this encoder's latents; the decoder is trained on what they make of small images, too.
    """

    init_from: str = ""
    decoder_only: bool = False
    boosters: tuple[str, ...] = ()

    def __post_init__(self):
        super().__post_init__()
        holds = self.decoder_only or not self.boosters
        require("train.", self, "decoder_only", "True where boosters are, which know this encoder's latents", holds)


@dataclasses.dataclass(frozen=True)
class AutoencoderEvaluateConfig:
    """Section `evaluate` of an autoencoder's config.

    Attributes:
        every: updates from one evaluation to the next; 0 for one at the end only.
        dir: held-out photographs; the training data's where empty.
        size: side of the centred squares that are measured.
        images: number of images.
    """

    every: int = 1000
    dir: str = ""
    size: int = 256
    images: int = 24

    def __post_init__(self):
        require_at_least("evaluate.", self, every=0, size=1, images=1)


@dataclasses.dataclass(frozen=True)
class AutoencoderTrainingConfig:
    """Config of `fmboost_jax.train_autoencoder`; `configs/autoencoder_demo.py` explains each field."""

    seed: int = 0
    data: CropsConfig = dataclasses.field(default_factory=CropsConfig)
    autoencoder: AutoencoderTinyConfig = dataclasses.field(default_factory=AutoencoderTinyConfig)
    loss: AutoencoderLossConfig = dataclasses.field(default_factory=AutoencoderLossConfig)
    optim: MuonConfig = dataclasses.field(default_factory=MuonConfig)
    ema: EmaConfig = dataclasses.field(default_factory=EmaConfig)
    train: AutoencoderTrainConfig = dataclasses.field(default_factory=AutoencoderTrainConfig)
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)
    evaluate: AutoencoderEvaluateConfig = dataclasses.field(default_factory=AutoencoderEvaluateConfig)

    def __post_init__(self):
        _check_seed(self)
