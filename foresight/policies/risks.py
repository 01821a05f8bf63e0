"""What a policy predicts of one generation, and the plan that follows from the steps computed."""

import dataclasses

import numpy as np

from foresight.plan import Plan
from foresight.solver import best_strength, corrections


@dataclasses.dataclass(frozen=True)
class Risks:
    """Predictions for the model's output, indexed by steps; infinite where too much is skipped.

    Attributes:
        amplitude: (S, S, S) by previous, latest, target: gain times root error of the better of
            reuse and forecast.
        coefficients: (S, S, S) by the same: of the forecast; 0 where reuse is better.
        between: (S, S, S) by earlier, later, target: gain times root error of interpolation; None
            where the solver cannot be corrected for, and with it the next two.
        place: (S, S, S) by the same: the interpolation's coefficient.
        leak: (S, S) by correcting step, target: what a full correction does wrong.
    """

    amplitude: np.ndarray
    coefficients: np.ndarray
    between: np.ndarray | None = None
    place: np.ndarray | None = None
    leak: np.ndarray | float = 0.0

    def plan(self, computed: np.ndarray, num_blocks: int, response: np.ndarray | None) -> Plan:
        """The plan at the output that computes the given steps.

        Args:
            computed: bool (S,); step 0 is computed.
            num_blocks: N.
            response: Of the solver, see `solver_response`.
        """
        betas, strengths = np.zeros((2, len(computed)))
        order = [0, *np.flatnonzero(computed), len(computed)]
        leak = np.broadcast_to(self.leak, self.amplitude.shape[1:])
        for previous, latest, after in zip(order, order[1:], order[2:], strict=False):
            run = slice(latest + 1, after)
            betas[run] = self.coefficients[previous, latest, run]
            if self.between is not None and after < len(computed):
                error = self.amplitude[previous, latest, run] ** 2
                left = np.minimum(self.between[latest, after, run] ** 2, error)
                strengths[run] = best_strength(error, left, leak[after, run])
        made = None
        if self.place is not None:
            made = corrections(computed, betas, self.place, response, strengths)
        return Plan.whole_stack(
            computed, betas, num_blocks, at_output=True, corrections=made, strengths=strengths
        )
