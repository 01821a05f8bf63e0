"""The planner: which steps to compute for a budget, as an exact shortest path."""

from collections.abc import Iterator

import numpy as np

from foresight.config import UserError
from foresight.solver import best_strength, remaining


def shortest_path(weight: np.ndarray, num_computed: int) -> np.ndarray:
    """The steps to compute that minimise the summed weight, given how many.

    Args:
        weight: (S, S, S + 1) as from `run_weights`.
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


def run_weights(
    amplitude: np.ndarray,
    power: float,
    between: np.ndarray | None = None,
    leak: np.ndarray | float = 0.0,
) -> np.ndarray:
    """Weights of all runs from the amplitude of each skipped step.

    Args:
        amplitude: (S, S, S); `[p, a, s]` is gain times root error at s if a, p were computed last.
        power: q; a run's damage is its summed amplitude to the 2q.
        between: (S, S, S); `[a, n, s]` is gain times root error that interpolation leaves at s once
            step n is computed; None if steps do not correct.
        leak: What a full correction does wrong, as a share of the energy of the uncorrected error;
            one, or (S, S) with `[n, s]` for step n correcting the error at s. Corrections are as
            strong as is best, see `solver.best_strength`.

    Returns:
        (S, S, S + 1); `weight[p, a, n]` is what it costs to compute at p, then a, then n and to
        skip all between a and n. p = a = 0 where only step 0 was computed; n = S ends the
        generation; inf where not p < a < n.
    """
    steps = amplitude.shape[0]
    leak = np.broadcast_to(leak, (steps, steps))
    weight = np.full((steps, steps, steps + 1), np.inf)
    order = np.arange(steps)
    for latest in range(steps):
        # Few steps may come before, between and after: all else is infinite.
        run = slice(latest + 1, latest + 1 + _longest(amplitude[:, latest, latest + 1 :]))
        reach = slice(latest + 1, min(run.stop + 1, steps + 1))
        before = np.arange(latest) if latest else np.zeros(1, int)
        before = before[np.isfinite(amplitude[before, latest, latest + 1 : latest + 2]).all(axis=1)]
        off = amplitude[before, latest, run]  # (p, s)
        sums = np.zeros((len(before), reach.stop - reach.start))
        sums[:, 1:] = np.cumsum(off, axis=1)[:, : sums.shape[1] - 1]
        if between is not None:
            ends = np.arange(latest + 2, min(reach.stop, steps))
            inside = order[run] < ends[:, None]  # (n, s)
            left = np.where(inside, between[latest, ends, run], 0)
            rest = corrected(np.where(inside, off[:, None], 0), left, leak[ends, run])  # (p, n, s)
            sums[:, ends - latest - 1] = np.sqrt(rest).sum(axis=2)
        weight[before, latest, reach] = sums ** (2 * power)
    return weight


def _longest(amplitude: np.ndarray) -> int:
    """How many steps at most can be skipped after one: of finite amplitudes (p, s)."""
    return int(np.isfinite(amplitude).any(axis=0).sum())


def corrected(amplitude: np.ndarray, between: np.ndarray, leak: np.ndarray) -> np.ndarray:
    """Squared error that the best correction leaves, from roots of errors; arrays that broadcast.

    Infinite amplitudes, of runs that are too long, stay infinite.
    """
    error = amplitude**2
    left = np.minimum(between**2, error)
    with np.errstate(invalid="ignore"):
        strength = best_strength(error, left, leak)
        rest = remaining(error, left, leak, strength)
    return np.where(np.isfinite(error), rest, np.inf)


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
