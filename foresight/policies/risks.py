"""What every way of skipping steps costs in one generation, and the plan that follows."""

import dataclasses
import functools
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from foresight.plan import Plan, skipped_runs
from foresight.policies.dynamics import TINY, Dynamics, Runs, run_energies

LONGEST_RUN = 8
Forecasts = Callable[[Tensor, Tensor, Tensor, int], Tensor]  # as `forecast_coefficients`


@dataclasses.dataclass(frozen=True)
class Risks:
    """Of all runs of a generation with S steps.

    Attributes:
        damage: (S, S, S + 1) energy that a run leaves in the final latents, by the step computed
            before the last, the last and the next (S: none); 0 where nothing is skipped, infinite
            where too much is. The two first are the same where only step 0 was computed.
        rows: int (S, S, S + 1) places in `coefficients` and `corrections`, by the same.
        coefficients: (B, P) of the forecasts, see `Runs`.
        corrections: (B, 2) kappa and lambda of the next step.
    """

    damage: np.ndarray
    rows: np.ndarray
    coefficients: np.ndarray
    corrections: np.ndarray

    def plan(
        self, computed: np.ndarray, num_blocks: int, strengths: np.ndarray | None = None
    ) -> Plan:
        """The plan at the output that computes the given steps.

        Args:
            computed: bool (S,); step 0 is computed.
            num_blocks: N.
            strengths: (S,) of the corrections at computed steps; all of them in full if None.
        """
        betas, made = np.zeros(len(computed)), np.zeros((len(computed), 2))
        for previous, latest, after in skipped_runs(computed):
            row = self.rows[previous, latest, after]
            betas[latest + 1 : after] = self.coefficients[row, : after - latest - 1]
            if after < len(computed):
                made[after] = self.corrections[row]
        if strengths is not None:
            made *= strengths[:, None]
        return Plan.whole_stack(computed, betas, num_blocks, at_output=True, corrections=made)


def forecast_coefficients(gram: Tensor, previous: Tensor, latest: Tensor, length: int) -> Tensor:
    """Least-squares coefficients (B, P) of forecasts from two computed steps.

    beta = <v[s] - v[a], v[a] - v[p]> / ||v[a] - v[p]||^2 for s = a + 1, ... a + P; 0 where p = a.
    """
    gram = gram.double()
    target = (latest[:, None] + 1 + torch.arange(length)).clamp(max=len(gram) - 1)
    p, a = previous[:, None], latest[:, None]
    along = gram[target, a] - gram[target, p] - gram[a, a] + gram[a, p]
    motion = gram[a, a] + gram[p, p] - 2 * gram[a, p]
    return torch.where(p < a, along / motion.clamp(min=TINY), 0.0).clamp(-1, 8)


def assess(
    gram: Tensor,
    dynamics: Dynamics,
    *,
    longest: int = LONGEST_RUN,
    corrects: bool = True,
    forecasts: Forecasts = forecast_coefficients,
) -> Risks:
    """The risks of one generation.

    Args:
        gram: (S, S) inner products of its predictions.
        dynamics: How errors reach its video.
        longest: Steps that may be skipped in a row.
        corrects: Whether computed steps make good what was missed.
        forecasts: Gives their coefficients.
    """
    steps = len(gram)
    steps_of, rows, damage = _every_run(steps, longest)
    energies, corrections = [gram.new_zeros(0)], [gram.new_zeros(0, 2)]
    coefficients = [gram.new_zeros(0, longest)]
    for length, (previous, latest, following) in enumerate(steps_of, start=1):
        betas = forecasts(gram, previous, latest, length)
        runs = Runs(previous, latest, following, torch.zeros_like(latest), betas)
        given = None if corrects else torch.zeros(len(latest), 2, dtype=torch.float64)
        left, made = run_energies(runs, gram[None], dynamics, given)
        energies.append(left)
        corrections.append(made)
        coefficients.append(torch.nn.functional.pad(betas, (0, longest - length)))
    damage = damage.copy()
    damage[rows >= 0] = torch.cat(energies).numpy()[rows[rows >= 0]]
    return Risks(damage, rows, torch.cat(coefficients).numpy(), torch.cat(corrections).numpy())


@functools.lru_cache(maxsize=8)
def _every_run(
    steps: int, longest: int
) -> tuple[list[tuple[Tensor, Tensor, Tensor]], np.ndarray, np.ndarray]:
    """All runs, by length from 1 on; and rows and damage of `Risks` before anything is known.

    A run is the step computed before the last, the last and the next.
    """
    order = np.arange(steps + 1)
    p, a, n = order[:steps, None, None], order[None, :steps, None], order[None, None, :]
    known = ((p < a) & (a - p <= longest + 1)) | ((p == 0) & (a == 0))
    rows = np.full((steps, steps, steps + 1), -1)
    found, count = [], 0
    for length in range(1, min(longest, steps - 1) + 1):
        places = np.nonzero(known & (n == a + 1 + length))
        rows[places] = count + np.arange(len(places[0]))
        count += len(places[0])
        found.append(tuple(torch.from_numpy(index) for index in places))
    return found, rows, np.where(known & (n == a + 1), 0.0, np.inf)
