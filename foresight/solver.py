"""What a solver makes of predictions, and how a computed step makes good what forecasts missed."""

import copy
import itertools
from typing import Any

import numpy as np
import torch

_KNOWN: dict[str, np.ndarray | None] = {}  # one for each solver and step count that was asked of


def solver_response(scheduler: Any) -> np.ndarray | None:
    """Response of the latents to a unit change of the prediction, from the solver alone.

    Read off a copy of the scheduler that steps through impulses, so that it holds for any linear
    solver. The model's own reaction to changed latents is not part of it.

    Args:
        scheduler: Its timesteps set.

    Returns:
        (S, S) float64; `[j, s]` is what a unit at step j adds to the latents after step s, 0 for
        j > s. None if the solver draws noise, or pays a prediction no heed.
    """
    levels = [getattr(scheduler, name, None) for name in ("timesteps", "sigmas")]
    known = [None if level is None else torch.as_tensor(level).tolist() for level in levels]
    key = repr((type(scheduler).__name__, dict(scheduler.config), known))
    if key not in _KNOWN:
        _KNOWN[key] = _probe(copy.deepcopy(scheduler))
    return _KNOWN[key]


def _probe(probe: Any) -> np.ndarray | None:
    probe.timesteps = probe.timesteps.cpu()
    probe.is_scale_input_called = True  # some warn if the input was not scaled first
    steps = len(probe.timesteps)
    response = np.zeros((steps, steps))
    sample = torch.zeros(steps + 1, 1, 1, 1, 1, dtype=torch.float64)
    try:
        for step, timestep in enumerate(probe.timesteps):
            impulse = torch.zeros_like(sample)
            impulse[step] = 1
            sample = probe.step(impulse, timestep, sample, return_dict=False)[0]
            if sample[step + 1 :].any():
                return None
            response[:, step] = sample[:steps].flatten().double().numpy()
    except (ValueError, RuntimeError, TypeError, IndexError):  # a step that asks for more
        return None
    return response if response.any(axis=1).all() else None


def remaining(error: Any, left: Any, leak: Any, strength: Any) -> Any:
    """Energy of an error that a correction of some strength leaves, elementwise.

    Interpolation knows all but `left` of the error, and a full correction does `leak` of it wrong:
    the model has already reacted to the latents that were off, and undoing too much is an error
    itself.
    """
    return left + (1 - strength) ** 2 * (error - left) + strength**2 * leak * error


def best_strength(error: Any, left: Any, leak: Any) -> Any:
    """The strength, from 0 to 1, with the least `remaining` (a Wiener filter)."""
    known = error - left
    return known / (known + leak * error + 1e-20)


def corrections(
    computed: np.ndarray,
    coefficients: np.ndarray,
    between: np.ndarray,
    response: np.ndarray | None,
    strengths: np.ndarray,
) -> np.ndarray:
    """Corrections (S, 2) of a plan at the output: kappa and lambda of its computed steps.

    When step n is computed, the skipped steps j since step a are known better: v[j] lies near
    `v[a] + c * (v[n] - v[a])`, where `v[a] + beta * (v[a] - v[p])` was used. The difference moves
    the latents of step n and of all that follow by response[j, n:]; a changed prediction at n moves
    them by response[n, n:], and is chosen to move them back, in least squares. That is exact where
    the solver takes one step at a time; one that looks back on earlier predictions has some of the
    difference in its memory still. This is the corrector of a predictor-corrector method, with
    coefficients that come from the model instead of polynomials.

    Args:
        computed: bool (S,).
        coefficients: (S,) of the forecasts; 0 where reused or computed.
        between: (S, S, S); `[a, n, j]` is c.
        response: From `solver_response`; None corrects nothing.
        strengths: (S,) of each skipped step, how much of its difference to make good.
    """
    found = np.zeros((len(computed), 2), np.float32)
    order = np.flatnonzero(computed)
    if response is None:
        return found
    for a, n in itertools.pairwise(order):
        skipped = np.arange(a + 1, n)
        undo = response[n, n:] / (response[n, n:] @ response[n, n:])
        share = strengths[skipped] * (response[skipped, n:] @ undo)
        found[n] = share @ between[a, n, skipped], share @ coefficients[skipped]
    return found
