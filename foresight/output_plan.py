"""A plan at the output, compiled: what a step returns, and what it keeps for later ones."""

import dataclasses

import numpy as np

from foresight.plan import COMPUTE, Plan


@dataclasses.dataclass(frozen=True)
class OutputStep:
    """What a step returns, with everything decided beforehand.

    Attributes:
        action: COMPUTE, REUSE or FORECAST.
        weights: Of the predictions computed last, the latest first; where this step computes, that
            is its own.
        keep: How many of the predictions, the latest first, later steps read.
    """

    action: int
    weights: tuple[float, ...]
    keep: int

    @property
    def plain(self) -> bool:
        """Whether the latest prediction is returned as it is."""
        return self.weights == (1.0,)


def compile_output_plan(plan: Plan) -> list[OutputStep]:
    """The steps (S,) of a plan at the output.

    Predictions are kept for as long as a later step reads them, and no longer.
    """
    steps: list[OutputStep] = []
    needed = 0  # by the steps after this one
    for action, row in reversed(list(zip(plan.actions[:, 0], plan.weights, strict=True))):
        reads = int(np.flatnonzero(row).max(initial=0)) + 1
        weights = tuple(row[:reads].tolist())
        steps.append(OutputStep(int(action), weights, needed))
        needed = max(reads, needed) - (action == COMPUTE)
    return steps[::-1]
