"""The planner: which steps to compute for a budget.

A shortest path over what runs of skipped steps add up to, then a local search on what they do
together.
"""

from collections.abc import Callable, Iterator

import numpy as np

from foresight.config import UserError

REACH = 2  # steps that a local search moves a computed one by
GAIN_WORTHWHILE = 1e-3  # relative


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


def refine(computed: np.ndarray, energies: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Move computed steps by one or two for as long as it helps, always by the best such move.

    Args:
        computed: bool (S,), where to start; step 0 stays computed.
        energies: What C choices (C, S) cost, (C,).

    Returns:
        bool (S,), with as many computed steps.
    """
    least = energies(computed[None])[0]
    while True:
        moves = _moves(computed)
        if not len(moves):
            return computed
        found = energies(moves)
        if found.min() >= (1 - GAIN_WORTHWHILE) * least:
            return computed
        computed, least = moves[found.argmin()], found.min()


def _moves(computed: np.ndarray) -> np.ndarray:
    """Choices (C, S) that differ by one step, which is computed up to `REACH` earlier or later."""
    steps = np.arange(len(computed))
    origin, target = np.meshgrid(steps, steps, indexing="ij")
    near = (abs(origin - target) <= REACH) & (origin > 0) & (target > 0)
    origin, target = np.nonzero(near & computed[:, None] & ~computed)
    moves = np.repeat(computed[None], len(origin), axis=0)
    row = np.arange(len(origin))
    moves[row, origin], moves[row, target] = False, True
    return moves


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
