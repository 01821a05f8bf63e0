"""The planner: which steps to compute for a budget, as an exact shortest path."""

from collections.abc import Iterator

import numpy as np

from foresight.config import UserError


def shortest_path(weight: np.ndarray, num_computed: int) -> np.ndarray:
    """The steps to compute that minimise the summed weight, given how many.

    Args:
        weight: (S, S, S + 1); what it costs to compute two steps, then a third and to skip all in
            between, see `local_energies`.
        num_computed: K, between 1 and S.

    Returns:
        bool (S,), True where computed; step 0 always is.
    """
    *_, (_, computed) = shortest_paths(weight, num_computed)
    return computed


def shortest_paths(weight: np.ndarray, most: int) -> Iterator[tuple[float, np.ndarray]]:
    """The least summed weight and its steps, for 1, 2, ... `most` computed steps.

    Exact: dynamic programming over (number computed, previous, latest), O(K S L^2) where no finite
    weight skips L steps or more, vectorised.
    """
    steps = weight.shape[0]
    band = _banded(weight)  # [a, i, j]: i steps after the previous, j steps before the next
    reach = band.shape[1]
    cost = np.full((steps + reach, reach), np.inf)  # of the pair (a - i, a); rows to spill into
    cost[0, 0] = 0.0
    places = np.arange(steps)[:, None] + np.arange(reach)
    columns = np.broadcast_to(np.arange(reach), places.shape)
    ends = np.full((steps, reach), np.inf)  # of the pair, if nothing is computed after it
    latest, before = np.nonzero(np.arange(steps)[:, None] >= np.arange(reach))
    ends[latest, before] = weight[latest - before, latest, steps]
    parents: list[np.ndarray] = []
    for count in range(1, most + 1):
        if count > 1:
            candidates = cost[:steps, :, None] + band
            parents.append(candidates.argmin(axis=1))
            cost = np.full_like(cost, np.inf)
            cost[places, columns] = candidates.min(axis=1)
        final = cost[:steps] + ends
        latest, gap = np.unravel_index(final.argmin(), final.shape)
        computed = np.zeros(steps, bool)
        computed[0] = True
        least = float(final[latest, gap])
        for chosen in reversed(parents):
            computed[latest] = True
            latest, gap = latest - gap, chosen[latest - gap, gap]
        yield least, computed


def _banded(weight: np.ndarray) -> np.ndarray:
    """Weights (S, L, L) by latest step, steps since the previous, steps to the next."""
    steps = weight.shape[0]
    previous, latest, following = np.nonzero(np.isfinite(weight[:, :, :steps]))
    reach = 1 + max((following - latest).max(initial=0), (latest - previous).max(initial=0))
    band = np.full((steps, reach, reach), np.inf)
    found = weight[previous, latest, following]
    band[latest, latest - previous, following - latest] = found
    return band


def steps_for_speedup(
    speedup: float,
    num_steps: int,
    stack_seconds: float,
    overhead_seconds: float,
    skip_seconds: float = 0.0,
) -> float:
    """How many steps (a fraction remains) may be computed for a denoising speed-up.

    Time is `K * stack + (S - K) * skip + S * overhead`.

    Raises:
        UserError: If the speed-up is not above 1, or cannot be reached; names the highest that can.
    """
    full = num_steps * (stack_seconds + overhead_seconds)
    floor = stack_seconds + num_steps * overhead_seconds + (num_steps - 1) * skip_seconds
    if speedup < 1:
        raise UserError(f"--speedup {speedup:g} would slow down; give a value of 1 or more")
    if full / speedup < floor:
        raise UserError(
            f"--speedup {speedup:g} cannot be reached here; the most is {full / floor:.2f}"
        )
    rest = full / speedup - num_steps * (overhead_seconds + skip_seconds)
    return min(num_steps, rest / (stack_seconds - skip_seconds))
