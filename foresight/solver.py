"""What a solver makes of predictions."""

import copy
from typing import Any, NamedTuple

import numpy as np
import torch

_ASKED: dict[str, "Solver | None"] = {}  # one for each solver and step count that was asked of


class Solver(NamedTuple):
    """A linear solver over S steps: `x[s] = decay[s] * x[0] + sum_j response[j, s] * v[j]`.

    x[0] are the latents that the model sees first, x[s] those after step s, v the predictions.
    """

    response: np.ndarray
    """(S, S); `[j, s]` is what a unit of v[j] adds to the latents after step s; 0 for j > s."""
    decay: np.ndarray
    """(S,) what is left of the first latents after each step; zeros where not known."""
    known: bool = True
    """Whether it was read off the scheduler, or is a stand-in."""


def solver_of(scheduler: Any) -> Solver | None:
    """The solver of a scheduler whose timesteps are set.

    Read off a copy that steps through impulses, so that it holds for any linear solver. The model's
    own reaction to changed latents is not part of it.

    Returns:
        None if the solver draws noise, or pays a prediction no heed.
    """
    levels = [getattr(scheduler, name, None) for name in ("timesteps", "sigmas")]
    known = [None if level is None else torch.as_tensor(level).tolist() for level in levels]
    key = repr((type(scheduler).__name__, dict(scheduler.config), known))
    if key not in _ASKED:
        _ASKED[key] = _probe(copy.deepcopy(scheduler))
    return _ASKED[key]


def _probe(probe: Any) -> Solver | None:
    probe.timesteps = probe.timesteps.cpu()
    probe.is_scale_input_called = True  # some warn if the input was not scaled first
    steps = len(probe.timesteps)
    seen = np.zeros((steps + 1, steps))
    # A row for each prediction's impulse, and the last for one of the first latents.
    sample = torch.zeros(steps + 1, 1, 1, 1, 1, dtype=torch.float64)
    sample[steps] = 1
    scaled = False  # whether the model sees latents other than the solver's
    try:
        for step, timestep in enumerate(probe.timesteps):
            impulse = torch.zeros_like(sample)
            impulse[step] = 1
            if hasattr(probe, "scale_model_input"):
                scaled |= not torch.equal(probe.scale_model_input(sample, timestep), sample)
            sample = probe.step(impulse, timestep, sample, return_dict=False)[0]
            if sample[step + 1 : steps].any():
                return None
            seen[:, step] = sample.flatten().double().numpy()
    except (ValueError, RuntimeError, TypeError, IndexError):  # a step that asks for more
        return None
    response, decay = seen[:steps], seen[steps]
    if not response.any(axis=1).all():
        return None
    return Solver(response, np.zeros(steps) if scaled else decay)


def euler_solver(sigmas: np.ndarray) -> Solver:
    """The plainest solver over sigmas (S,), in place of one that cannot be asked."""
    steps = np.diff(np.append(np.asarray(sigmas, float), 0.0))
    response = np.triu(np.broadcast_to(steps[:, None], (len(steps), len(steps))))
    return Solver(response, np.zeros(len(steps)), known=False)
