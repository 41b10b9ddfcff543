"""A protocol: everything that a number depends on, read from a config and checked."""

import dataclasses

from ml_collections import ConfigDict

from fmboost_jax.errors import InputError
from fmboost_jax.evaluation.degradations import DEGRADATIONS, FILTERS
from fmboost_jax.flow.solvers import METHODS
from fmboost_jax.metrics.features import KINDS

PAIRED = ("psnr", "ssim", "lpips", "ssimulacra2")
SETS = ("fid", "patch-fid")
METRICS = (*PAIRED, "clip", *SETS)
SOURCES = ("photographs", "prompts")


@dataclasses.dataclass(frozen=True)
class Protocol:
    """What `configs/protocols/folders.py` describes, field by field."""

    name: str
    seed: int
    count: int
    high_res: int
    high_res_filter: str
    enlarge: bool
    source: str
    low_res: int
    low_res_filter: str
    degradation: str
    base_steps: int
    guidance: float
    steps: int
    method: str
    metrics: tuple[str, ...]
    features: str
    patches: tuple[tuple[int, int], ...]
    lpips: str
    clip: str
    batch_size: int
    num_threads: int

    @classmethod
    def of(cls, config: ConfigDict) -> "Protocol":
        """The protocol of a config.

        Raises:
            InputError: a value that is none of the known ones, or out of range.
        """
        fields = {field.name for field in dataclasses.fields(cls)} - {"lpips", "clip"}
        values = {name: config[name] for name in fields}
        for patch in config.patches:
            if not (isinstance(patch, tuple) and len(patch) == 2 and all(type(n) is int and n > 0 for n in patch)):
                raise InputError(f"patches {config.patches}: expected ((side, crops an image), …), as in ((512, 4),)")
        protocol = cls(**values, lpips=config.lpips.path, clip=config.clip.path)
        protocol._check()
        return protocol

    def _check(self) -> None:
        for what, values, known in (
            ("metrics", self.metrics, METRICS),
            ("features", (self.features,), tuple(KINDS)),
            ("source", (self.source,), SOURCES),
            ("degradation", (self.degradation,), DEGRADATIONS),
            ("high_res_filter", (self.high_res_filter,), tuple(FILTERS)),
            ("low_res_filter", (self.low_res_filter,), tuple(FILTERS)),
            ("method", (self.method,), METHODS),
        ):
            for value in values:
                if value not in known:
                    raise InputError(f"{what} {value!r} is unknown; there are {', '.join(known)}")
        if not self.metrics:
            raise InputError(f"no metrics asked for; there are {', '.join(METRICS)}")
        if self.source == "prompts" and self.paired:
            raise InputError(
                f"{', '.join(self.paired)} compare an image with its original, and a prompt's has none; "
                f"with source 'prompts' there are clip, {', '.join(SETS)}"
            )
        lowest = {"count": 0, "high_res": 0, "low_res": 0, "steps": 1, "batch_size": 1, "num_threads": 1}
        for name, least in lowest.items():
            if getattr(self, name) < least:
                raise InputError(f"{name} is {getattr(self, name)}, expected {least} or more")
        for side, _ in self.patches:
            if "patch-fid" in self.metrics and 0 < self.high_res < side:
                raise InputError(f"patches of {side} pixels do not fit into images of {self.high_res}")

    @property
    def paired(self) -> tuple[str, ...]:
        """The metrics that compare an image with its original."""
        return tuple(metric for metric in PAIRED if metric in self.metrics)

    @property
    def feature_sets(self) -> dict[str, tuple[int, int] | None]:
        """The distances between sets by name, each with its patches, or None for whole images."""
        distance = KINDS[self.features].metric
        sets = {distance: None} if "fid" in self.metrics else {}
        if "patch-fid" in self.metrics:
            sets |= {f"patch-{size}-{distance}": (size, count) for size, count in self.patches}
        return sets
