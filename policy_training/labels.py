"""What the traces say about reuse and forecast, read off Gram matrices of residuals.

With r_s the residual at the step in question, r_a the latest computed and r_p the one computed
before it, every quantity is an inner product of d = r_s - r_a and v = r_a - r_p.
"""

from typing import NamedTuple

import torch
from torch import Tensor

# Below this share of the residual's own squared norm a change is rounding noise of float32.
NOISE_FLOOR = 1e-6


class Moments(NamedTuple):
    """Inner products of the change `d` and the last known motion `v`; all of one shape."""

    change: Tensor
    """Squared norm of d: the error of reusing r_a."""
    cross: Tensor
    """Inner product of d and v."""
    motion: Tensor
    """Squared norm of v; 0 where no earlier residual is known."""
    own: Tensor
    """Squared norm of r_s."""


def moments(gram: Tensor, rows: Tensor, steps: Tensor) -> Moments:
    """Look the moments of Q queries up.

    Args:
        gram: (M, S, S) inner products over steps, one matrix for each of M residuals.
        rows: (Q,) which residual.
        steps: (Q, 3) step s, latest computed step a < s, and step p < a computed before it;
            p = a where there is none.
    """
    target, latest, previous = steps.unbind(1)

    def inner(i: Tensor, j: Tensor) -> Tensor:
        return gram[rows, i, j].double()

    ss, aa, pp = inner(target, target), inner(latest, latest), inner(previous, previous)
    sa, sp, ap = inner(target, latest), inner(target, previous), inner(latest, previous)
    return Moments(
        change=(ss + aa - 2 * sa).clamp(min=NOISE_FLOOR * ss).float(),
        cross=(sa - sp - aa + ap).float(),
        motion=(aa + pp - 2 * ap).clamp(min=0).float(),
        own=ss.float(),
    )


def forecast_error(query: Moments, coefficient: Tensor) -> Tensor:
    """Squared error of r_a + coefficient * v as a stand-in for r_s, in the units of the Gram."""
    error = query.change - 2 * coefficient * query.cross + coefficient**2 * query.motion
    return torch.maximum(error, NOISE_FLOOR * query.own)


def best_coefficient(query: Moments) -> Tensor:
    """Forecast coefficient with the least error; 0 where no earlier residual is known."""
    known = query.motion > 0
    return torch.where(known, query.cross / query.motion.where(known, torch.ones(())), 0.0)


def safe_to_reuse(query: Moments, tolerance: float) -> Tensor:
    """Whether r_s differs from r_a by at most `tolerance` times its own norm; bool, as queries."""
    return query.change <= tolerance**2 * query.own
