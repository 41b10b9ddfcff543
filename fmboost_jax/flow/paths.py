"""Probability paths between a source x0 (t = 0) and a target x1 (t = 1).

A path is a pair of coefficients, x_t = α(t) x1 + σ(t) x0, and determines the velocity that the
network learns, and the score and noise that stochastic sampling needs. Times have shape (b,), one for each example, and
broadcast over the rest.

Sources: Lipman et al., "Flow Matching for Generative Modeling", arXiv 2210.02747; Ma et al., "SiT: Exploring Flow and
Diffusion-based Generative Models with Scalable Interpolant Transformers", arXiv 2401.08740, section 2 (the two paths,
the score from the velocity, and that the diffusion coefficient is free to choose).
"""

import abc
import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fmboost_jax.errors import InputError
from fmboost_jax.registry import build, unknown

DIFFUSION_FORMS = ("constant", "SBDM", "sigma", "linear", "decreasing", "increasing-decreasing")


@dataclasses.dataclass(frozen=True)
class Path(abc.ABC):
    """Base class of all paths.

    `score` and `noise` assume x0 ~ N(0, I), independent of x1. They are exact under that assumption (with `sigma_min`
    too); where the flow starts at a low-res latent, they are only a formal change of variables.

    Attributes:
        sigma_min: standard deviation of the noise that blurs x_t along the whole path; 0 for none, and less than 1.

    Raises:
        InputError: a sigma_min outside this range.
    """

    sigma_min: float = 0.0

    def __post_init__(self):
        if not 0 <= self.sigma_min < 1:
            raise InputError(f"a path's sigma_min is {self.sigma_min}, expected 0 or more and less than 1")

    @abc.abstractmethod
    def alpha(self, t: Float[Array, "*b"]) -> Float[Array, "*b"]:
        """Coefficient of x1: 0 at t = 0, 1 at t = 1."""

    @abc.abstractmethod
    def sigma(self, t: Float[Array, "*b"]) -> Float[Array, "*b"]:
        """Coefficient of x0: 1 at t = 0, 0 at t = 1."""

    def alpha_dot(self, t: Float[Array, "*b"]) -> Float[Array, "*b"]:
        """dα/dt, by automatic differentiation where a path does not define it."""
        return jax.jvp(self.alpha, (t,), (jnp.ones_like(t),))[1]

    def sigma_dot(self, t: Float[Array, "*b"]) -> Float[Array, "*b"]:
        """dσ/dt, by automatic differentiation where a path does not define it."""
        return jax.jvp(self.sigma, (t,), (jnp.ones_like(t),))[1]

    def interpolate(
        self,
        x0: Float[Array, "b *d"],
        x1: Float[Array, "b *d"],
        t: Float[Array, "b"],
        noise: Float[Array, "b *d"] | None = None,
    ) -> Float[Array, "b *d"]:
        """x_t = α x1 + σ x0 + σ_min ε; the standard normal ε (`noise`) is needed only where σ_min > 0.

        Raises:
            InputError: σ_min > 0 and no noise.
        """
        t = _like(t, x0)
        mixed = self.alpha(t) * x1 + self.sigma(t) * x0
        if not self.sigma_min:
            return mixed
        if noise is None:
            raise InputError(
                f"a path with sigma_min {self.sigma_min} needs standard normal noise to interpolate; none was given"
            )
        return mixed + self.sigma_min * noise

    def velocity(
        self, x0: Float[Array, "b *d"], x1: Float[Array, "b *d"], t: Float[Array, "b"]
    ) -> Float[Array, "b *d"]:
        """d x_t / dt = α′ x1 + σ′ x0, the network's regression target."""
        t = _like(t, x0)
        return self.alpha_dot(t) * x1 + self.sigma_dot(t) * x0

    def score(
        self, velocity: Float[Array, "b *d"], x: Float[Array, "b *d"], t: Float[Array, "b"]
    ) -> Float[Array, "b *d"]:
        """∇ log p_t(x) from the marginal velocity at x; infinite at t = 1 unless σ_min > 0. SiT, section 2."""
        t = _like(t, x)
        variance = self.sigma(t) * self._wronskian(t) + self.alpha_dot(t) * self.sigma_min**2
        return (self.alpha(t) * velocity - self.alpha_dot(t) * x) / variance

    def noise(
        self, velocity: Float[Array, "b *d"], x: Float[Array, "b *d"], t: Float[Array, "b"]
    ) -> Float[Array, "b *d"]:
        """E[x0 | x_t = x] from the marginal velocity at x, the prediction of a noise-predicting network."""
        t = _like(t, x)
        blur = self.alpha_dot(t) * self.sigma_min**2 / self.sigma(t) if self.sigma_min else 0.0
        return (self.alpha_dot(t) * x - self.alpha(t) * velocity) / (self._wronskian(t) + blur)

    def diffusion(
        self, x: Float[Array, "b *d"], t: Float[Array, "b"], form: str = "SBDM", norm: float = 1.0
    ) -> Float[Array, "b *ones"]:
        """Diffusion coefficient w(t) of dx = (v + w s) dt + √(2w) dW, which keeps the path's marginals for any w ≥ 0.

        Forms, with n = `norm`: "constant" n, "SBDM" n (σ² α′/α − σ σ′) (infinite at t = 0), "sigma" n σ,
        "linear" n (1 − t), "decreasing" ((n cos πt + 1) / 2)², "increasing-decreasing" n sin² πt.

        Returns:
            w of shape (b, 1, …), as many axes as x.

        Raises:
            InputError: a form that is not in `DIFFUSION_FORMS`.
        """
        t = _like(t, x)
        match form:
            case "constant":
                return jnp.full_like(t, norm)
            case "SBDM":
                return norm * self.sigma(t) * self._wronskian(t) / self.alpha(t)
            case "sigma":
                return norm * self.sigma(t)
            case "linear":
                return norm * (1 - t)
            case "decreasing":
                return ((norm * jnp.cos(jnp.pi * t) + 1) / 2) ** 2
            case "increasing-decreasing":
                return norm * jnp.sin(jnp.pi * t) ** 2
        raise unknown("diffusion form", form, DIFFUSION_FORMS)

    def _wronskian(self, t: Float[Array, "*b"]) -> Float[Array, "*b"]:
        """α′σ − ασ′, which is never zero, so that x_t and its velocity determine x0 and x1."""
        return self.alpha_dot(t) * self.sigma(t) - self.alpha(t) * self.sigma_dot(t)


@dataclasses.dataclass(frozen=True)
class LinearPath(Path):
    """Straight lines at constant speed: α = t, σ = 1 − t. The paper's path (arXiv 2312.07360)."""

    def alpha(self, t: Float[Array, "*b"]) -> Float[Array, "*b"]:
        """t."""
        return t

    def sigma(self, t: Float[Array, "*b"]) -> Float[Array, "*b"]:
        """1 − t."""
        return 1 - t

    def alpha_dot(self, t: Float[Array, "*b"]) -> Float[Array, "*b"]:
        """1."""
        return jnp.ones_like(t)

    def sigma_dot(self, t: Float[Array, "*b"]) -> Float[Array, "*b"]:
        """−1."""
        return -jnp.ones_like(t)


@dataclasses.dataclass(frozen=True)
class GVPPath(Path):
    """Generalised variance preserving: α = sin(πt/2), σ = cos(πt/2), so α² + σ² = 1 (SiT, section 2)."""

    def alpha(self, t: Float[Array, "*b"]) -> Float[Array, "*b"]:
        """sin(πt/2)."""
        return jnp.sin(jnp.pi / 2 * t)

    def sigma(self, t: Float[Array, "*b"]) -> Float[Array, "*b"]:
        """cos(πt/2)."""
        return jnp.cos(jnp.pi / 2 * t)

    def alpha_dot(self, t: Float[Array, "*b"]) -> Float[Array, "*b"]:
        """(π/2) cos(πt/2)."""
        return jnp.pi / 2 * jnp.cos(jnp.pi / 2 * t)

    def sigma_dot(self, t: Float[Array, "*b"]) -> Float[Array, "*b"]:
        """−(π/2) sin(πt/2)."""
        return -jnp.pi / 2 * jnp.sin(jnp.pi / 2 * t)


PATHS: dict[str, Callable[..., Path]] = {"linear": LinearPath, "gvp": GVPPath}


def make_path(text: str) -> Path:
    """Return the path that a config names: an entry of `PATHS`, with its settings, such as "linear(sigma_min=0.001)".

    Raises:
        InputError: an unknown name or setting.
    """
    return build("path", text, PATHS)


def _like(t: Float[Array, "b"], x: Float[Array, "b *d"]) -> Float[Array, "b *ones"]:
    """t with as many axes as x."""
    return t.reshape(t.shape + (1,) * (x.ndim - 1))
