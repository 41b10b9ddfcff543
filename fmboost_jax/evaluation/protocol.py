"""Protocols: the settings that determine the results of an evaluation, read from a config and checked."""

import dataclasses

from fmboost_jax.configuration import require_at_least
from fmboost_jax.errors import InputError
from fmboost_jax.evaluation.degradations import DEGRADATIONS, FILTERS
from fmboost_jax.flow.solvers import METHODS
from fmboost_jax.images.colour import FIXES, NO_FIX
from fmboost_jax.metrics.features import KINDS
from fmboost_jax.metrics.table import METRICS
from fmboost_jax.registry import check_name

SOURCES = ("photographs", "prompts")


@dataclasses.dataclass(frozen=True)
class LPIPSConfig:
    """Section `lpips`: folder of the network's weights. Default: they come from the hub."""

    path: str = ""


@dataclasses.dataclass(frozen=True)
class CLIPConfig:
    """Section `clip`: folder or hub id of the network of `clip` and `clip-iqa`."""

    path: str = "openai/clip-vit-large-patch14"


@dataclasses.dataclass(frozen=True)
class Protocol:
    """Settings of an evaluation; `configs/protocols/folders.py` describes each field."""

    name: str = "folders"
    seed: int = 0
    count: int = 0
    high_res: int = 0
    high_res_filter: str = "lanczos"
    enlarge: bool = False
    source: str = "photographs"
    low_res: int = 0
    low_res_filter: str = "bicubic"
    degradation: str = "none"
    base_steps: int = 25
    guidance: float = 7.5
    steps: int = 4
    method: str = "euler"
    colour_fix: str = NO_FIX
    metrics: tuple[str, ...] = ("psnr", "ssim", "fid")
    features: str = "inception"
    patches: tuple[tuple[int, int], ...] = ((512, 4),)
    lpips: LPIPSConfig = dataclasses.field(default_factory=LPIPSConfig)
    clip: CLIPConfig = dataclasses.field(default_factory=CLIPConfig)
    batch_size: int = 4
    num_threads: int = 4

    def __post_init__(self):
        for what, values, known in (
            ("metrics", self.metrics, METRICS),
            ("features", (self.features,), tuple(KINDS)),
            ("source", (self.source,), SOURCES),
            ("degradation", (self.degradation,), DEGRADATIONS),
            ("high_res_filter", (self.high_res_filter,), tuple(FILTERS)),
            ("low_res_filter", (self.low_res_filter,), tuple(FILTERS)),
            ("method", (self.method,), METHODS),
            ("colour_fix", (self.colour_fix,), (*FIXES, NO_FIX)),
        ):
            for value in values:
                check_name(what, value, known)
        if not self.metrics:
            raise InputError(f"no metrics; choose some of {', '.join(METRICS)}")
        if self.source == "prompts" and self.paired:
            raise InputError(
                f"{', '.join(self.paired)} compare an image with its original, which images of prompts do not have; "
                f"with source 'prompts' choose from {', '.join(n for n, m in METRICS.items() if m.kind != 'paired')}"
            )
        require_at_least("", self, count=0, high_res=0, low_res=0, steps=1, batch_size=1, num_threads=1)
        for side, crops in self.patches:
            if min(side, crops) < 1:
                raise InputError(f"patches {self.patches}: expected ((side, crops per image), …), as in ((512, 4),)")
            if "patch-fid" in self.metrics and 0 < self.high_res < side:
                raise InputError(f"patches of {side} pixels are larger than images of {self.high_res}")

    @property
    def paired(self) -> tuple[str, ...]:
        """Metrics that compare an image with its original."""
        return self._of_kind("paired")

    @property
    def needs_captions(self) -> bool:
        """Whether the evaluation needs captions, for source "prompts" or for a metric."""
        return self.source == "prompts" or bool(self._of_kind("text"))

    def _of_kind(self, kind: str) -> tuple[str, ...]:
        return tuple(name for name, metric in METRICS.items() if metric.kind == kind and name in self.metrics)

    @property
    def feature_sets(self) -> dict[str, tuple[int, int] | None]:
        """Metrics of two sets by name, with their patches (side, number per image), or None for whole images."""
        distance = KINDS[self.features].metric
        sets: dict[str, tuple[int, int] | None] = {distance: None} if "fid" in self.metrics else {}
        if "patch-fid" in self.metrics:
            sets |= {f"patch-{size}-{distance}": (size, count) for size, count in self.patches}
        return sets
