"""The method: paths, couplings, objectives and solvers, without any network."""

from fmboost_jax.flow.boost import boost_latents
from fmboost_jax.flow.coupling import Coupling, couple, noise_augment
from fmboost_jax.flow.guidance import guided
from fmboost_jax.flow.loss import flow_matching_loss
from fmboost_jax.flow.objectives import FlowMatching, make_objective
from fmboost_jax.flow.paths import GVPPath, LinearPath, Path, make_path
from fmboost_jax.flow.sde import StochasticSolver, integrate_sde
from fmboost_jax.flow.solvers import Solver, integrate, integrate_adaptive, integrate_mean_velocity

__all__ = [
    "Coupling",
    "FlowMatching",
    "GVPPath",
    "LinearPath",
    "Path",
    "Solver",
    "StochasticSolver",
    "boost_latents",
    "couple",
    "flow_matching_loss",
    "guided",
    "integrate",
    "integrate_adaptive",
    "integrate_mean_velocity",
    "integrate_sde",
    "make_objective",
    "make_path",
    "noise_augment",
]
