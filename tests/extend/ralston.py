"""A fixed-step method from outside the package."""

from fmboost_jax.flow.solvers import FIXED_GRID, Tableau

FIXED_GRID["ralston"] = Tableau(2, ((), (2 / 3,)), (1 / 4, 3 / 4))
