"""Real schedulers, stepped by hand through predictions that are known: no model, no pipeline."""

import copy
from collections.abc import Callable

import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)

from foresight.solver import Solver, solver_of

SOLVER_STEPS = 12
DIFFUSION = {"beta_start": 1e-4, "beta_end": 0.02, "prediction_type": "v_prediction"}
ONE_STEP = [
    DDIMScheduler(**DIFFUSION, timestep_spacing="trailing", clip_sample=False),
    FlowMatchEulerDiscreteScheduler(shift=3.0),
]
MULTISTEP = [
    DPMSolverMultistepScheduler(**DIFFUSION),
    UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True),
]


def ready(scheduler, steps: int = SOLVER_STEPS):
    """A copy whose timesteps are set."""
    scheduler = copy.deepcopy(scheduler)
    scheduler.set_timesteps(steps)
    return scheduler


def known_solver(scheduler, steps: int = SOLVER_STEPS) -> Solver:
    solver = solver_of(ready(scheduler, steps))
    assert solver is not None
    return solver


def precision(scheduler) -> float:
    """The flow-matching solver computes in single precision."""
    return 1e-5 if isinstance(scheduler, FlowMatchEulerDiscreteScheduler) else 1e-6


def latents_along(
    scheduler,
    first: torch.Tensor,
    predict: Callable[[int, torch.Tensor], torch.Tensor],
    steps: int = SOLVER_STEPS,
) -> torch.Tensor:
    """Latents (S + 1, D) before and after every step; `predict(step, latents)` is the model."""
    scheduler, seen = ready(scheduler, steps), [first]
    for step, timestep in enumerate(scheduler.timesteps):
        sample = seen[-1].reshape(1, 1, 1, 1, -1)
        predicted = predict(step, seen[-1]).reshape(sample.shape)
        seen.append(scheduler.step(predicted, timestep, sample, return_dict=False)[0].flatten())
    return torch.stack(seen)
