"""Standing in for predictions: a linear multistep method whose coefficients come from traces.

Where a step is skipped, a weighted sum of the predictions computed last stands in for its own;
where one is computed, its prediction is weighted likewise, which makes good what was missed before
it. The weights are those of least squares: after each step the latents shall come as close as can
be to those of the uncached generation.

What is needed for that is known before the first step. Latents are a linear function of
predictions (the solver's response), predictions are known by their inner products, and how they
answer latents that are off is the learned `Reaction`. So a plan is carried out on paper, in
coordinates: those that span the uncached predictions, twice, for the directions in which the model
reacts more and less than on average.
"""

import numpy as np

from foresight.plan import HISTORY, plain_weights
from foresight.policies.reaction import Reaction
from foresight.solver import Solver

LONGEST_RUN = 8
RIDGE = 1e-3  # keeps weights from living off rounding
SMOOTHNESS = 0.3  # what a prediction that is itself right counts, beside right latents after it
TINY = 1e-12
# What is fitted: how far to go from plain reuse of v[a] along v[a] itself and the last differences
# v[a] - v[p] and v[p] - v[q]. Rows are these, columns v[a], v[p], v[q].
WAYS = np.array([[1.0, 0, 0], [1, -1, 0], [0, 1, -1]])
IDENTITY = np.eye(HISTORY)


def coordinates(gram: np.ndarray) -> np.ndarray:
    """Vectors (S, R) with inner products `gram` (S, S), in as few dimensions as rounding allows."""
    scale, axes = np.linalg.eigh(gram)
    kept = scale > 1e-9 * scale[-1]
    return axes[:, kept] * np.sqrt(scale[kept])


def carry_out(
    path: np.ndarray,
    solver: Solver,
    reaction: Reaction,
    computed: np.ndarray,
    weights: np.ndarray | None = None,
    *,
    history: int = HISTORY,
) -> tuple[np.ndarray, np.ndarray]:
    """Carry plans out on paper.

    Args:
        path: (S, R) uncached predictions, see `coordinates`.
        solver: Of the generation; nothing is corrected where it is not known.
        reaction: At the generation's noise levels.
        computed: bool (C, S), of C plans; step 0 is computed.
        weights: (C, S, HISTORY) of the plans; those of least squares if not given.
        history: How many predictions these may use, at most HISTORY.

    Returns:
        The weights (C, S, HISTORY), see `Plan`, and the energy (C,) of what the final latents are
        off by.
    """
    plans, steps = computed.shape
    true = reaction.embedded(path)
    chosen = np.broadcast_to(plain_weights(steps), (plans, steps, HISTORY)).astype(float)
    off = np.zeros((steps, plans, true.shape[1]))  # of what was returned
    flat = off.reshape(steps, -1)
    held = np.zeros((plans, HISTORY, true.shape[1]))
    count = np.zeros(plans, int)
    error = np.zeros((plans, true.shape[1]))
    for step in range(steps):
        seen = true[step] + reaction.answer(step, error)
        now = computed[:, step]
        held[now] = np.concatenate([seen[now, None], held[now, :-1]], axis=1)
        count += now
        carried = (solver.response[:step, step] @ flat[:step]).reshape(error.shape)
        if weights is not None:
            chosen[:, step] = weights[:, step]
        else:
            wrong = (count < step + 1) & (solver.known | ~now)  # something was skipped so far
            wanted = _wanted(true[step], carried[wrong], solver, step)
            there = count[wrong].clip(max=history)
            chosen[wrong, step] += _fit(held[wrong], wanted - held[wrong, 0], there)
        off[step] = (chosen[:, step, None] @ held)[:, 0] - true[step]
        error = carried + solver.response[step, step] * off[step]
    return chosen, (error**2).sum(axis=1)


def _wanted(
    true: np.ndarray, carried: np.ndarray, solver: Solver, step: int | np.ndarray
) -> np.ndarray:
    """The prediction (B, D) that would be best at a step.

    Args:
        true: (D,) or (B, D), the uncached one.
        carried: (B, D) what the latents after it are off by, if it is returned.
        solver: Of the generation.
        step: Which; one, or (B,).
    """
    if not solver.known:
        return np.broadcast_to(true, carried.shape)
    own = np.atleast_1d(solver.response[step, step])[:, None]
    own = np.where(abs(own) < TINY, np.inf, own)  # where it moves nothing, it makes nothing good
    return true - carried / own / (1 + SMOOTHNESS)


def _fit(held: np.ndarray, wanted: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Changes (B, HISTORY) of plain weights that come closest to wanted changes (B, D).

    Args:
        held: (B, HISTORY, D) predictions, the latest first.
        wanted: (B, D).
        count: (B,) how many of them to use.
    """
    there = np.arange(HISTORY) < count[:, None]
    ways = WAYS * there[:, :, None]
    along = ways @ held
    inner, towards = along @ along.swapaxes(1, 2), along @ wanted[:, :, None]
    ridge = RIDGE * inner.trace(axis1=1, axis2=2) + TINY
    inner += ridge[:, None, None] * IDENTITY
    return (np.linalg.solve(inner, towards).swapaxes(1, 2) @ ways)[:, 0]


def local_energies(
    path: np.ndarray, solver: Solver, longest: int = LONGEST_RUN, *, history: int = HISTORY
) -> np.ndarray:
    """What every run of skipped steps leaves in the latents after it, if all was right before.

    Args:
        path: (S, R), see `coordinates`.
        solver: Of the generation.
        longest: Steps that a run may have.
        history: How many predictions may be used; of more than two, the two latest.

    Returns:
        (S, S, S + 1) energies by the step computed before the last, the last, and the next (S:
        none); 0 where nothing is skipped, infinite where more than `longest` are. The two first are
        the same where only step 0 was computed.
    """
    steps = len(path)
    found = np.full((steps, steps, steps + 1), np.inf)
    place = np.arange(steps)
    previous, latest = np.nonzero(
        ((place[:, None] < place) & (place - place[:, None] <= longest + 1))
        | ((place[:, None] == 0) & (place == 0))
    )
    found[previous, latest, latest + 1] = 0
    missed: list[np.ndarray] = []  # in the predictions, by how far into the run: (B, R)
    for length in range(1, min(longest, steps - 1) + 1):
        inside = latest + length < steps
        previous, latest = previous[inside], latest[inside]
        missed = [each[inside] for each in missed]
        step = latest + length
        carried = np.zeros((len(step), path.shape[1]))
        for into, each in enumerate(missed, start=1):
            carried += solver.response[latest + into, step][:, None] * each
        held = np.stack([path[latest], path[previous], np.zeros((len(step), path.shape[1]))], 1)
        own = solver.response[step, step][:, None]
        wanted = _wanted(path[step], carried, solver, step)
        there = (1 + (previous < latest)).clip(max=history)
        weights = _fit(held, wanted - held[:, 0], there)
        weights[:, 0] += 1
        missed.append(np.einsum("bh,bhd->bd", weights, held) - path[step])
        left = carried + own * missed[-1]
        found[previous, latest, step + 1] = np.maximum((left**2).sum(axis=1), TINY)
    return found
