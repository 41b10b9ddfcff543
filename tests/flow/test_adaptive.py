"""Adaptive methods: accuracy for a tolerance, counts of evaluations, and integrations that give up."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmboost_jax.errors import InputError
from fmboost_jax.flow.solvers import integrate, integrate_adaptive


def swing(x, t):
    """dx/dt = 9 x cos 9t, so x(t) = x(0) exp(sin 9t)."""
    return 9 * x * jnp.cos(9 * t)[:, None]


def after_swinging(t):
    return np.exp(np.sin(9 * np.asarray(t)))


def ones(*shape):
    return jnp.ones(shape or (1, 1))


@pytest.mark.parametrize("tolerance", [1e-3, 1e-4, 1e-5])
def test_error_is_within_the_tolerance(tolerance):
    solution = integrate_adaptive(swing, ones(), rtol=tolerance, atol=tolerance)
    assert solution.reached_end
    assert not solution.reached_max_steps
    assert float(solution.x[0, 0]) == pytest.approx(after_swinging(1), rel=10 * tolerance)


def test_a_smaller_tolerance_takes_more_evaluations():
    costs = [int(integrate_adaptive(swing, ones(), rtol=r, atol=r).evaluations) for r in (1e-2, 1e-4, 1e-6)]
    assert costs == sorted(set(costs))


def test_reverse_integration_returns_to_the_start():
    there = integrate_adaptive(swing, ones()).x
    back = integrate_adaptive(swing, there, reverse=True).x
    np.testing.assert_allclose(back, 1, atol=1e-4)


def test_the_trajectory_has_the_points_of_the_grid():
    solution = integrate_adaptive(swing, ones(), steps=7)
    np.testing.assert_allclose(solution.trajectory[:, 0, 0], after_swinging(np.linspace(0, 1, 8)), rtol=1e-4)
    np.testing.assert_array_equal(solution.trajectory[-1], solution.x)


def test_a_step_shortened_to_hit_the_grid_does_not_shorten_the_next():
    """A constant velocity takes three steps to the first of nine points, the last one shortened, then one for each."""
    solution = integrate_adaptive(lambda x, t: jnp.ones_like(x), ones(), steps=9)
    assert solution.steps == 3 + 8


def test_reported_evaluations_are_the_number_of_calls():
    calls = []

    def counting(x, t):
        jax.debug.callback(lambda: calls.append(1))
        return swing(x, t)

    solution = integrate_adaptive(counting, ones())
    jax.effects_barrier()
    assert len(calls) == solution.evaluations == 1 + 6 * solution.steps
    assert solution.steps > 5


def test_reaching_max_steps_is_reported():
    solution = integrate_adaptive(swing, ones(), max_steps=3)
    assert solution.reached_max_steps
    assert not solution.reached_end
    assert solution.steps == 3
    assert np.isfinite(solution.x).all()


def test_giving_up_returns_nan():
    assert np.isnan(integrate(swing, ones(), method="dopri5", steps=1, max_steps=3)).all()
    trajectory = integrate(swing, ones(), method="dopri5", steps=50, max_steps=6, return_trajectory=True)
    reached = np.isfinite(trajectory[:, 0, 0])
    assert reached[0]
    assert 1 < reached.sum() < 51
    assert not np.diff(reached.astype(int)).max() > 0, "a gap in the trajectory"


def test_max_steps_equal_to_the_needed_steps_suffice():
    needed = int(integrate_adaptive(swing, ones()).steps)
    assert integrate_adaptive(swing, ones(), max_steps=needed).reached_end
    assert not integrate_adaptive(swing, ones(), max_steps=needed - 1).reached_end


def test_the_example_with_the_largest_error_sets_the_steps():
    """One example of 1024 moves; a root mean square over the batch would accept 32 times its error."""

    def one_swings(x, t):
        return swing(x, t).at[1:].set(0)

    alone = integrate_adaptive(swing, ones(1, 1), rtol=1e-4, atol=1e-4)
    crowd = integrate_adaptive(one_swings, ones(1024, 1), rtol=1e-4, atol=1e-4)
    assert crowd.steps > 0.8 * alone.steps


def test_a_step_with_nan_is_rejected_and_shortened():
    """The velocity is NaN outside the unit ball; no solution leaves the ball, but the stages of a long step do."""

    def brittle(x, t):
        return jnp.where(jnp.abs(x) > 1.01, jnp.nan, -400 * x)

    solution = integrate_adaptive(brittle, ones())
    assert solution.reached_end
    np.testing.assert_allclose(solution.x, 0, atol=1e-5)


def test_it_gives_up_early_where_no_step_size_helps():
    solution = integrate_adaptive(lambda x, t: jnp.full_like(x, jnp.nan), ones())
    assert not solution.reached_end
    assert not solution.reached_max_steps
    assert solution.steps < 20
    np.testing.assert_array_equal(solution.x, 1)


def test_fewer_than_one_step_is_refused():
    with pytest.raises(InputError, match="max_steps must be at least 1, found 0"):
        integrate_adaptive(swing, ones(), max_steps=0)
