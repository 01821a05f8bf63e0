"""A plan at the output, compiled: a step's prediction as a sum of the latest that were computed."""

import dataclasses

import numpy as np

from foresight.plan import COMPUTE, FORECAST, Plan


@dataclasses.dataclass(frozen=True)
class OutputStep:
    """What a step returns, with everything decided beforehand.

    Attributes:
        action: COMPUTE, REUSE or FORECAST.
        fresh: Weight of the prediction computed at this step.
        kept: Weights of the predictions computed before it, the latest first.
        keep: How many of the predictions, the latest first, later steps read.
    """

    action: int
    fresh: float
    kept: tuple[float, ...]
    keep: int


def compile_output_plan(plan: Plan) -> list[OutputStep]:
    """The steps (S,) of a plan at the output.

    A forecast is `v[a] + beta * (v[a] - v[p])`. A corrected step returns
    `v[s] + kappa * (v[s] - v[a]) - lambda * (v[a] - v[p])`. Predictions are kept for as long as a
    later step reads them, and no longer.
    """
    weights = []
    for step, action in enumerate(plan.actions[:, 0]):
        beta = float(plan.coefficients[step, 0])
        if action == COMPUTE:
            kappa, lam = (float(c) for c in plan.corrections[step])
            weights.append((1 + kappa, (-kappa - lam, lam)))
        else:
            weights.append((0.0, (1 + beta, -beta) if action == FORECAST else (1.0, 0.0)))
    steps: list[OutputStep] = []
    needed = 0  # by the steps after this one
    for step in reversed(range(len(weights))):
        action, (fresh, kept) = int(plan.actions[step, 0]), weights[step]
        reads = int(np.flatnonzero(kept).max(initial=-1)) + 1
        steps.append(OutputStep(action, fresh, kept[:reads], needed))
        needed = max(reads, needed - 1 if action == COMPUTE else needed)
    return steps[::-1]
