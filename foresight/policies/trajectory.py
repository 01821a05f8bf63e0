"""From the predictions of a fine schedule to those of another one.

Fewer and larger steps leave the trajectory of many small ones: the solver's own error puts latents
off, and the model answers with other predictions. How far, follows from the solvers' responses and
the model's reaction, as for skipped steps.
"""

import numpy as np

from foresight.policies.multistep import coordinates
from foresight.policies.reaction import Reaction
from foresight.solver import Solver


def resampled(
    gram: np.ndarray,
    grid: np.ndarray,
    fine: Solver,
    sigmas: np.ndarray,
    solver: Solver,
    reaction: Reaction,
) -> np.ndarray:
    """Predictions to be expected at other noise levels, (S, R) coordinates.

    Args:
        gram: (M, M) inner products of the predictions of the fine schedule.
        grid: (M,) its noise levels, falling.
        fine: Its solver.
        sigmas: (S,) noise levels that are wanted.
        solver: Theirs.
        reaction: At `sigmas`. It counts for solvers that keep the first latents whole (flow
            matching); for others predictions are interpolated as they are.
    """
    known = coordinates(gram)
    found = interpolated(known, grid, sigmas)
    if not (_keeps_latents(fine) and _keeps_latents(solver)):
        return found
    latents = np.concatenate([np.zeros((1, known.shape[1])), fine.response.T @ known])
    latents = interpolated(latents, np.append(grid, 0.0), sigmas)
    path, latents = reaction.embedded(found), reaction.embedded(latents)
    for step in range(1, len(path)):
        error = solver.response[:step, step - 1] @ path[:step] - latents[step]
        path[step] += reaction.answer(step, error)
    return coordinates(path @ path.T)


def _keeps_latents(solver: Solver) -> bool:
    return solver.known and np.allclose(solver.decay, 1)


def interpolated(rows: np.ndarray, levels: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Rows (M, R) that belong to falling levels (M,), at others (S,): linear, level at the ends."""
    return np.stack([np.interp(-wanted, -levels, column) for column in rows.T], axis=1)
