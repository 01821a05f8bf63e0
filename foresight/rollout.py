"""Roll-outs: running a given plan, and the error it leaves in the video."""

from typing import Any

import numpy as np

from foresight.clock import log_snr
from foresight.config import GenerationConfig
from foresight.metrics import psnr
from foresight.pipeline import Generated, generate
from foresight.plan import Plan
from foresight.planner import run_weights, shortest_path
from foresight.policies.fixed import FixedPlan
from foresight.solver import corrections

TYPICAL_LEAK = 0.3
KINDS = ("planned", "stack", "planned", "single")  # in turn


def roll_out(
    pipe: Any, prompt: str, config: GenerationConfig, seed: int, plan: Plan, reference: Generated
) -> dict[str, Any]:
    """Run a plan and compare it with the uncached run of the same seed.

    Returns:
        The columns `plan`, `coefficients`, `corrections`, `strengths`, `at_output`,
        `compute_fraction`, `final_error` (latent MSE over the mean square of the uncached latents)
        and `psnr` in dB.
    """
    result = generate(pipe, prompt, config, seed=seed, policy=FixedPlan(plan))
    truth = reference.latents.float()
    error = (result.latents.float() - truth).square().mean() / truth.square().mean()
    return {
        "plan": plan.actions,
        "coefficients": plan.coefficients,
        "corrections": plan.corrections,
        "strengths": plan.strengths,
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
    response: np.ndarray | None = None,
) -> Plan:
    """Draw a plan at the output to learn from.

    Args:
        kind: "planned": the planner's for this very trace, at a random budget and with a random
            emphasis on low or high noise; "stack": skipped runs of random length; "single": one
            skipped run.
        rng: Source of chance.
        gram: (S, S) inner products of the model's outputs.
        sigmas: (S,).
        num_blocks: N.
        response: Of the solver; where given, most plans that forecast also correct, at random
            strength.
    """
    steps = len(gram)
    between, left = interpolations(gram)
    strength = rng.choice([0.0, rng.uniform(0.5, 1.1)], p=[0.3, 0.7])
    computed = np.ones(steps, bool)
    if kind == "planned":
        strength = 1.0
        gain = np.exp(log_snr(sigmas) * rng.uniform(-0.1, 0.4))
        amplitude, power = gain * np.sqrt(_least_errors(gram)), rng.uniform(0.5, 2)
        after = None if response is None else gain * np.sqrt(left)
        weight = run_weights(amplitude, power, after, TYPICAL_LEAK)
        computed = shortest_path(weight, int(rng.integers(steps // 4, steps)))
    elif kind == "single":
        start = rng.integers(1, steps)
        computed[start : start + rng.integers(1, 4)] = False
    else:
        mean_run, step = rng.uniform(0.3, 3.5), int(rng.integers(1, 5))
        while step < steps:
            run = min(int(rng.poisson(mean_run)), 8)
            computed[step : step + run] = False
            step += run + 1
    betas = strength * best_coefficients(gram, computed)
    made_good = np.zeros(steps)
    if response is not None and strength:
        made_good[~computed] = rng.choice([0.0, rng.uniform(0.2, 1)], p=[0.2, 0.8])
    correct = corrections(computed, betas, between, response, made_good)
    return Plan.whole_stack(
        computed, betas, num_blocks, at_output=True, corrections=correct, strengths=made_good
    )


def _least_errors(gram: np.ndarray) -> np.ndarray:
    """Squared error (S, S, S), by previous, latest and target step, of the best forecast."""
    own = np.diag(gram)
    change = own[:, None] + own[None] - 2 * gram  # (S, S)
    # <r[s] - r[a], r[a] - r[p]> and ||r[a] - r[p]||^2, over [p, a, s]
    along = gram[None] - gram[:, None, :] - own[None, :, None] + gram[:, :, None]
    cut = np.divide(along**2, change[:, :, None], where=change[:, :, None] > 1e-12, out=0 * along)
    return np.clip(change[None] - cut, 1e-3 * change[None].clip(0), None)


def interpolations(gram: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Least-squares place of each step between two others, and the squared error it leaves.

    Returns:
        c and error, both (S, S, S) by earlier step a, later step n and step j: of
        `v[a] + c * (v[n] - v[a])` for v[j].
    """
    own = np.diag(gram)
    change = own[:, None] + own[None] - 2 * gram  # (S, S)
    # <v[j] - v[a], v[n] - v[a]> over [a, n, j]
    along = gram[None] - gram[:, None, :] - gram[:, :, None] + own[:, None, None]
    known = change[:, :, None] > 1e-12
    place = np.divide(along, change[:, :, None], where=known, out=0 * along)
    left = change[:, None, :] - place * along
    return place, np.clip(left, 1e-3 * change[:, None, :].clip(0), None)


def best_coefficients(gram: np.ndarray, computed: np.ndarray) -> np.ndarray:
    """Least-squares forecast coefficients of a plan's skipped steps.

    For a step s with the last computed steps a and p before it,
    beta = <r[s] - r[a], r[a] - r[p]> / ||r[a] - r[p]||^2; 0 where there are not two.

    Args:
        gram: (S, S) inner products of the residual over steps.
        computed: bool (S,).

    Returns:
        (S,) float64.
    """
    betas = np.zeros(len(gram))
    done: list[int] = []
    for step, is_computed in enumerate(computed):
        if is_computed:
            done.append(step)
        elif len(done) > 1:
            previous, latest = done[-2:]
            along = (
                gram[step, latest]
                - gram[step, previous]
                - gram[latest, latest]
                + gram[latest, previous]
            )
            length = gram[latest, latest] + gram[previous, previous] - 2 * gram[latest, previous]
            betas[step] = along / max(length, 1e-12)
    return np.clip(betas, -1.0, 8.0)
