"""What a solver makes of predictions."""

import copy
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


def euler_response(sigmas: np.ndarray) -> np.ndarray:
    """The response (S, S) of the plainest solver over sigmas (S,), for one that cannot be asked."""
    steps = np.diff(np.append(np.asarray(sigmas, float), 0.0))
    return np.triu(np.broadcast_to(steps[:, None], (len(steps), len(steps))))
