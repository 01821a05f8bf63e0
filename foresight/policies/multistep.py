"""Standing in for predictions: a linear multistep method whose coefficients come from traces.

Where a step is skipped, a weighted sum of the predictions computed last and of the latents at hand
stands in for its prediction; where one is computed, its prediction is weighted likewise, which
makes good what was missed before it. The weights are those of least squares: after each step the
latents shall come as close as can be to those of the uncached generation. Latents are a known
linear function of first latents and predictions (the solver's), so that all of it follows from
inner products, before the first step.

All vectors here are combinations of the predictions v[0], ... v[S-1] of the uncached generation and
its first latents, in this order; `gram` (S + 1, S + 1) are the inner products of those. Zeros stand
for first latents that are not known; latents are then left out.
"""

import itertools
from collections.abc import Iterator

import numpy as np

from foresight.plan import HISTORY, plain_weights
from foresight.solver import Solver

LONGEST_RUN = 8
RIDGE = 1e-3  # keeps weights from living off rounding
SMOOTHNESS = 0.3  # what a prediction that is itself right counts, beside right latents after it
DOUBT = 1e-4  # see `doubts_at`; chosen on validation prompts of both embedded models
TINY = 1e-12
# What is fitted: how far to go from plain reuse of v[a] along v[a] itself, the last differences
# v[a] - v[p] and v[p] - v[q], and the latents. Rows are these, columns v[a], v[p], v[q], latents.
WAYS = np.array([[1.0, 0, 0, 0], [1, -1, 0, 0], [0, 1, -1, 0], [0, 0, 0, 1]])


def with_first_latents(gram: np.ndarray, first: np.ndarray) -> np.ndarray:
    """Inner products (S + 1, S + 1) from those of predictions (S, S) and of first latents.

    Args:
        gram: Of the predictions.
        first: (S + 1,) of the first latents with each prediction, then with themselves.
    """
    return np.block([[gram, first[:-1, None]], [first[None, :-1], first[-1:, None]]])


def doubts_at(sigmas: np.ndarray) -> np.ndarray:
    """Energy by which predictions are off where steps were skipped before, (S,).

    Over the mean energy of predictions. A model answers latents that are off a little with
    predictions that are off in ways that traces do not tell; the more, the more noise there is.
    Without this, weights trust small differences of predictions too much.
    """
    noise = sigmas / np.maximum(1 - sigmas, 0.003)
    return DOUBT * (1 + noise**1.5)


def multistep_weights(
    gram: np.ndarray,
    solver: Solver,
    computed: np.ndarray,
    doubts: np.ndarray | None = None,
    history: int = HISTORY,
) -> np.ndarray:
    """The weights (S, HISTORY + 1) of a plan that computes some steps, see `Plan`.

    Args:
        gram: (S + 1, S + 1), see above.
        solver: Of the generation; nothing is corrected where it is not known.
        computed: bool (S,); step 0 is computed.
        doubts: (S,), see `doubts_at`; none if not given.
        history: Predictions that a step may read, at most HISTORY.
    """
    steps = len(computed)
    true, latents = np.eye(steps + 1), _latents(solver)
    returned, now = np.zeros((steps, steps + 1)), latents[0]
    weights = plain_weights(steps).astype(float)
    unsure = np.zeros(steps) if doubts is None else doubts * gram.diagonal()[:-1].mean()
    done: list[int] = []
    for step in range(steps):
        if computed[step]:
            done.insert(0, step)
        recent = done[:history]
        held = _held([true[recent]], len(recent), now[None], gram, solver)
        without = solver.decay[step] * true[steps] + solver.response[:, step] @ returned
        exact = len(done) == step + 1  # nothing was skipped so far
        if not exact and (solver.known or not computed[step]):
            wanted = _wanted(step, without[None], true, latents, solver)
            own = np.zeros(HISTORY + 1)
            own[: len(recent)] = unsure[recent]
            weights[step] += _fit(held, wanted - held[:, 0], gram, own)[0]
        returned[step] = weights[step] @ held[0]
        now = without + solver.response[step, step] * returned[step]
    return weights


def local_energies(gram: np.ndarray, solver: Solver, longest: int = LONGEST_RUN) -> np.ndarray:
    """What every run of skipped steps leaves in the latents after it, if all was right before.

    Returns:
        (S, S, S + 1) energies by the step computed before the last, the last, and the next (S:
        none); 0 where nothing is skipped, infinite where more than `longest` are. The two first are
        the same where only step 0 was computed.
    """
    steps = len(solver.decay)
    true, latents = np.eye(steps + 1), _latents(solver)
    found = np.full((steps, steps, steps + 1), np.inf)
    place = np.arange(steps)
    previous, latest = np.nonzero(
        ((place[:, None] < place) & (place - place[:, None] <= longest + 1))
        | ((place[:, None] == 0) & (place == 0))
    )
    found[previous, latest, latest + 1] = 0
    missed: list[np.ndarray] = []  # in the predictions, by how far into the run: (B, S + 1)
    for length in range(1, min(longest, steps - 1) + 1):
        inside = latest + length < steps
        previous, latest = previous[inside], latest[inside]
        missed = [each[inside] for each in missed]
        step = latest + length
        off = _moved(missed, latest, step - 1, solver)
        without = latents[step + 1] - solver.response[step, step][:, None] * true[step]
        without = without + _moved(missed, latest, step, solver)
        pair = np.stack([true[latest], true[previous]], axis=1)
        held = _held(pair, 2, latents[step] + off, gram, solver)
        held[previous == latest, 1] = 0
        wanted = _wanted(step, without, true, latents, solver)
        returned = held[:, 0] + _along(held, _fit(held, wanted - held[:, 0], gram))
        missed.append(returned - true[step])
        left = _moved(missed, latest, step, solver)
        found[previous, latest, step + 1] = np.maximum(((left @ gram) * left).sum(axis=1), TINY)
    return found


def run_energies(
    gram: np.ndarray, solver: Solver, computed: np.ndarray, weights: np.ndarray
) -> Iterator[tuple[int, int, float]]:
    """What each run of a given plan leaves in the latents after it, if all was right before.

    Args:
        gram: (S + 1, S + 1), see above.
        solver: Of the generation.
        computed: bool (S,).
        weights: (S, HISTORY + 1) of the plan.

    Yields:
        The step computed last, the one computed next (S: none), and the energy.
    """
    steps = len(computed)
    true, latents = np.eye(steps + 1), _latents(solver)
    order = [*np.flatnonzero(computed).tolist(), steps]
    for count, (latest, following) in enumerate(itertools.pairwise(order), start=1):
        if following == latest + 1:
            continue
        predictions = true[order[max(0, count - HISTORY) : count][::-1]]
        missed: list[np.ndarray] = []
        here = np.array([latest])
        for step in range(latest + 1, following):
            now = latents[step] + _moved(missed, here, np.array([step - 1]), solver)[0]
            recent = weights[step, : len(predictions)] @ predictions
            missed.append((recent + weights[step, HISTORY] * now - true[step])[None])
        left = _moved(missed, here, np.array([following - 1]), solver)[0]
        yield latest, following, max(float(left @ gram @ left), TINY)


def _latents(solver: Solver) -> np.ndarray:
    """Latents before each step and at the end, (S + 1, S + 1)."""
    steps = len(solver.decay)
    latents = np.zeros((steps + 1, steps + 1))
    latents[0, steps] = 1
    latents[1:, :steps], latents[1:, steps] = solver.response.T, solver.decay
    return latents


def _moved(
    missed: list[np.ndarray], latest: np.ndarray, step: np.ndarray, solver: Solver
) -> np.ndarray:
    """How far latents (B, S + 1) are off after a step, from what runs missed since the latest."""
    total = np.zeros((len(latest), len(solver.decay) + 1))
    for place, each in enumerate(missed, start=1):
        total += solver.response[latest + place, step][:, None] * each
    return total


def _held(
    predictions: np.ndarray | list[np.ndarray],
    count: int,
    latents: np.ndarray,
    gram: np.ndarray,
    solver: Solver,
) -> np.ndarray:
    """What may be weighted, (B, HISTORY + 1, S + 1): predictions, zeros where none, and latents."""
    held = np.zeros((len(latents), HISTORY + 1, latents.shape[1]))
    held[:, : min(count, HISTORY)] = predictions
    if gram[-1, -1] > 0 and solver.decay.any():
        held[:, HISTORY] = latents
    return held


def _wanted(
    step: int | np.ndarray,
    without: np.ndarray,
    true: np.ndarray,
    latents: np.ndarray,
    solver: Solver,
) -> np.ndarray:
    """The prediction (B, S + 1) that would be best at a step.

    Args:
        step: One, or (B,).
        without: (B, S + 1) latents after it if it were to predict nothing.
        true: The basis.
        latents: Of the uncached generation, before each step and at the end.
        solver: Of the generation.
    """
    own = np.atleast_1d(solver.response[step, step])[:, None]
    if not solver.known or (abs(own) < TINY).any():
        return np.broadcast_to(true[step], without.shape)
    needed = (latents[np.asarray(step) + 1] - without) / own
    return (needed + SMOOTHNESS * true[step]) / (1 + SMOOTHNESS)


def _fit(
    held: np.ndarray, wanted: np.ndarray, gram: np.ndarray, own: np.ndarray | None = None
) -> np.ndarray:
    """Changes (B, HISTORY + 1) of plain weights that come closest to wanted changes (B, S + 1).

    Each of what is held may have an energy of its `own` (HISTORY + 1,) that `gram` knows nothing
    of.
    """
    there = (held != 0).any(axis=2)
    ways = np.broadcast_to(WAYS, (len(held), *WAYS.shape)).copy()
    ways[:, 1:3] *= there[:, 1:3, None]
    along = ways @ held
    measured = along @ gram
    inner, towards = measured @ along.swapaxes(1, 2), measured @ wanted[:, :, None]
    if own is not None:
        inner = inner + (ways * own) @ ways.swapaxes(1, 2)
        towards = towards - (ways * own)[:, :, :1]
    ridge = RIDGE * np.einsum("brr->br", inner) + TINY
    inner = inner + ridge[:, :, None] * np.eye(len(WAYS))
    return np.linalg.solve(inner, towards)[:, :, 0] @ WAYS * there


def _along(held: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted sums (B, S + 1)."""
    return (weights[:, :, None] * held).sum(axis=1)
