"""What a solver makes of predictions, and how a computed step makes good what forecasts missed."""

import copy
import itertools
from typing import Any

import numpy as np
import torch

TOLERANCE = 1e-4


def solver_response(scheduler: Any) -> np.ndarray | None:
    """Response of the latents to a unit change of the prediction, from the solver alone.

    Read off a copy of the scheduler that steps through impulses, so that it holds for any linear
    solver. The model's own reaction to changed latents is not part of it.

    Args:
        scheduler: Its timesteps set.

    Returns:
        (S, S) float64; `[j, s]` is what a unit at step j adds to the latents after step s, 0 for
        j > s. None if the solver draws noise, or looks back on earlier predictions (then a change
        at step s cannot undo one at step j for all that follows).
    """
    probe = copy.deepcopy(scheduler)
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
    return response if _is_one_step(response) else None


def _is_one_step(response: np.ndarray) -> bool:
    """Whether every step carries all that came before it on by one and the same factor."""
    for step in range(1, len(response)):
        before, after = response[:step, step - 1], response[:step, step]
        factor = (before @ after) / max(before @ before, 1e-30)
        if np.abs(after - factor * before).max() > TOLERANCE * np.abs(response[:, step]).max():
            return False
    return bool((np.abs(np.diag(response)) > 1e-8).all())


def corrections(
    computed: np.ndarray, coefficients: np.ndarray, between: np.ndarray, response: np.ndarray | None
) -> np.ndarray:
    """Corrections (S, 2) of a plan at the output: kappa and lambda of its computed steps.

    When step n is computed, the skipped steps j since step a are known better: v[j] lies near
    `v[a] + c * (v[n] - v[a])`, where `v[a] + beta * (v[a] - v[p])` was used. The difference has
    moved the latents by response[j, n]; a prediction at n that is changed by the sum of
    response[j, n] / response[n, n] times the differences moves them back. This is the corrector of
    a predictor-corrector method, with coefficients that come from the model instead of polynomials.

    Args:
        computed: bool (S,).
        coefficients: (S,) of the forecasts; 0 where reused or computed.
        between: (S, S, S); `[a, n, j]` is c.
        response: From `solver_response`; None corrects nothing.
    """
    found = np.zeros((len(computed), 2), np.float32)
    order = np.flatnonzero(computed)
    if response is None:
        return found
    for a, n in itertools.pairwise(order):
        skipped = np.arange(a + 1, n)
        share = response[skipped, n] / response[n, n]
        found[n] = share @ between[a, n, skipped], share @ coefficients[skipped]
    return found
