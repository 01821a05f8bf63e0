"""Roll-outs: running a given plan, and the error it leaves in the video."""

from typing import Any

import numpy as np

from foresight.config import GenerationConfig
from foresight.metrics import psnr
from foresight.pipeline import Generated, generate
from foresight.plan import Plan, plain_weights
from foresight.planner import shortest_paths
from foresight.policies.fixed import FixedPlan
from foresight.policies.multistep import LONGEST_RUN, carry_out, coordinates, local_energies
from foresight.policies.reaction import Reaction
from foresight.recorder import PredictionRecorder
from foresight.solver import Solver

KINDS = ("planned", "stack", "planned", "single")  # in turn


def roll_out(
    pipe: Any,
    prompt: str,
    config: GenerationConfig,
    seed: int,
    plan: Plan,
    reference: Generated,
    seen: PredictionRecorder,
) -> dict[str, Any]:
    """Run a plan and compare it with the uncached run of the same seed.

    Args:
        pipe: A diffusers pipeline.
        prompt: Of the generation.
        config: Of the generation.
        seed: Of the generation.
        plan: To run.
        reference: The uncached run.
        seen: What was recorded of that.

    Returns:
        The columns `plan`, `coefficients`, `weights`, `at_output`, `compute_fraction`,
        `final_error` (latent MSE over the mean square of the uncached latents), `psnr` in dB and
        `reaction`, see `PredictionRecorder`.
    """
    recorder = PredictionRecorder(seen.sketcher, config.guidance_scale)
    result = generate(pipe, prompt, config, seed=seed, policy=FixedPlan(plan), tap=recorder)
    truth = reference.latents.float()
    error = (result.latents.float() - truth).square().mean() / truth.square().mean()
    return {
        "plan": plan.actions,
        "coefficients": plan.coefficients,
        "weights": plan.weights,
        "at_output": plan.at_output,
        "compute_fraction": plan.compute_fraction(),
        "final_error": float(error),
        "psnr": psnr(reference.frames, result.frames),
        "reaction": recorder.reaction(seen, len(plan.actions)),
    }


def sample_plan(
    kind: str,
    rng: np.random.Generator,
    trace: dict[str, Any],
    num_blocks: int,
    solver: Solver,
) -> Plan:
    """Draw a plan at the output to learn from.

    Args:
        kind: "planned": of a planner that knows this very trace, at a random budget and for a model
            of which errors are healed at random; "stack": skipped runs of random length; "single":
            one skipped run.
        rng: Source of chance.
        trace: Its `group_gram` and `sigmas`.
        num_blocks: N.
        solver: Of the generation.

    Returns:
        With the trace's own weights in part: some plans reuse, some come close to them.
    """
    path = coordinates(trace["group_gram"][1])
    steps, strength = len(path), 1.0
    computed = np.ones(steps, bool)
    if kind == "planned":
        signal = 1 - np.append(trace["sigmas"], 0.0)
        gains = signal.clip(0.02) ** -rng.uniform(0, 2)
        damage = (local_energies(path, solver) * gains) ** rng.uniform(0.5, 1)
        count = int(rng.integers(max(1, steps // 4), max(2, steps)))
        *_, (_, computed) = shortest_paths(damage, count)
    elif kind == "single":
        start = rng.integers(1, steps)
        computed[start : start + rng.integers(1, 4)] = False
    else:
        mean_run, step = rng.uniform(0.3, 3.5), int(rng.integers(1, 5))
        while step < steps:
            run = min(int(rng.poisson(mean_run)), LONGEST_RUN)
            computed[step : step + run] = False
            step += run + 1
    if kind != "planned":
        strength = rng.choice([0.0, rng.uniform(0.5, 1)], p=[0.3, 0.7])
    plain = plain_weights(steps)
    unmoved = Reaction(*np.zeros((2, steps)))  # before it is known
    best = carry_out(path, solver, unmoved, computed[None])[0][0]
    return Plan.of_output(computed, plain + strength * (best - plain), num_blocks)
