"""An adaptive pair from outside the package, without a slope that two steps share."""

from fmboost_jax.flow.solvers import ADAPTIVE, Tableau

ADAPTIVE["heun_euler"] = Tableau(2, ((), (1.0,)), (1 / 2, 1 / 2), (1.0, 0.0))
