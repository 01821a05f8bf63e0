"""Roll-outs: running a given plan, and the error it leaves in the video."""

from typing import Any

import numpy as np
import torch

from foresight.config import GenerationConfig
from foresight.metrics import psnr
from foresight.pipeline import Generated, generate
from foresight.plan import Plan
from foresight.planner import shortest_path
from foresight.policies.dynamics import ErrorDynamics
from foresight.policies.fixed import FixedPlan
from foresight.policies.risks import LONGEST_RUN, assess, forecast_coefficients

KINDS = ("planned", "stack", "planned", "single")  # in turn


def roll_out(
    pipe: Any, prompt: str, config: GenerationConfig, seed: int, plan: Plan, reference: Generated
) -> dict[str, Any]:
    """Run a plan and compare it with the uncached run of the same seed.

    Returns:
        The columns `plan`, `coefficients`, `corrections`, `at_output`, `compute_fraction`,
        `final_error` (latent MSE over the mean square of the uncached latents)
        and `psnr` in dB.
    """
    result = generate(pipe, prompt, config, seed=seed, policy=FixedPlan(plan))
    truth = reference.latents.float()
    error = (result.latents.float() - truth).square().mean() / truth.square().mean()
    return {
        "plan": plan.actions,
        "coefficients": plan.coefficients,
        "corrections": plan.corrections,
        "at_output": plan.at_output,
        "compute_fraction": plan.compute_fraction(),
        "final_error": float(error),
        "psnr": psnr(reference.frames, result.frames),
    }


def sample_plan(
    kind: str,
    rng: np.random.Generator,
    gram: np.ndarray,
    sigmas: np.ndarray,
    num_blocks: int,
    response: np.ndarray,
    *,
    corrects: bool = True,
) -> Plan:
    """Draw a plan at the output to learn from.

    Args:
        kind: "planned": the planner's for this very trace, at a random budget and for a model that
            reacts at random; "stack": skipped runs of random length; "single": one skipped run.
        rng: Source of chance.
        gram: (S, S) inner products of the model's outputs.
        sigmas: (S,).
        num_blocks: N.
        response: (S, S) of the solver.
        corrects: Whether computed steps may correct; most do, at random strength.
    """
    steps = len(gram)
    damping = 1.0 if kind == "planned" else rng.choice([0.0, rng.uniform(0.5, 1.1)], p=[0.3, 0.7])

    def damped(*asked: Any) -> torch.Tensor:
        return damping * forecast_coefficients(*asked)

    risks = assess(
        torch.from_numpy(gram),
        _random_dynamics(rng)(torch.from_numpy(sigmas), torch.from_numpy(response)),
        corrects=corrects,
        forecasts=damped,
    )
    computed = np.ones(steps, bool)
    if kind == "planned":
        weight = risks.damage ** rng.uniform(0.5, 1)
        computed = shortest_path(weight, int(rng.integers(max(1, steps // 4), max(2, steps))))
    elif kind == "single":
        start = rng.integers(1, steps)
        computed[start : start + rng.integers(1, 4)] = False
    else:
        mean_run, step = rng.uniform(0.3, 3.5), int(rng.integers(1, 5))
        while step < steps:
            run = min(int(rng.poisson(mean_run)), LONGEST_RUN)
            computed[step : step + run] = False
            step += run + 1
    return risks.plan(computed, num_blocks, random_strengths(rng, steps))


def random_strengths(rng: np.random.Generator, steps: int) -> np.ndarray:
    """How much of its correction each step (S,) makes: some nothing, some more than all of it."""
    return np.where(rng.random(steps) < 0.2, 0.0, rng.uniform(0.2, 1.3, steps))


@torch.no_grad()
def _random_dynamics(rng: np.random.Generator) -> ErrorDynamics:
    """A model that reacts at random, within what trained ones have shown."""
    dynamics = ErrorDynamics().requires_grad_(False)
    dynamics.reaction[0] = rng.uniform(-1.5, 0)
    dynamics.reaction[1] = rng.uniform(0, 1)
    return dynamics
