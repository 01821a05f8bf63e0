"""The learned policy with its choice of steps changed; all compute an exact number of steps.

Whole-stack plans cost the same per computed step, so that two of them with as many computed steps
cost the same without any timing.
"""

import bisect
import dataclasses
from collections.abc import Callable
from typing import Self

import numpy as np
import torch
from torch import Tensor

from foresight.planner import shortest_path, shortest_paths
from foresight.policies.base import Generation
from foresight.policies.dynamics import Dynamics
from foresight.policies.fixed import warmup_length
from foresight.policies.learned import LearnedPolicy
from foresight.policies.risks import Forecasts, Risks, assess, forecast_coefficients

Rule = Callable[[Tensor], Forecasts]  # from the noise levels (S,) of a generation


class ExactCount(LearnedPolicy):
    """Computes round(S / speedup) steps, whatever they cost.

    Attributes:
        detail: What else a table must say of it.
        rule: Gives the coefficients of its forecasts; None leaves the policy's own.
        corrects: Whether computed steps make good what was missed.
    """

    detail = ""
    rule: Rule | None = None
    corrects = True

    @classmethod
    def of(cls, policy: LearnedPolicy, detail: str = "") -> Self:
        """This variant of a policy; it keeps the policy's rule."""
        other = cls(policy.model, policy.fingerprint, policy.costs, name=policy.name)
        other.detail = detail
        if isinstance(policy, ExactCount):
            other.rule = policy.rule
        return other

    @property
    def setting(self) -> str:
        """Its detail."""
        return self.detail

    def _affordable(self, steps: int) -> int:
        return max(1, round(steps / self.speedup))

    def _risks(self, generation: Generation, longest: int) -> Risks:
        sigmas = torch.from_numpy(np.asarray(generation.sigmas, float))
        return assess(
            self._gram(generation),
            self.dynamics(generation),
            longest=longest,
            corrects=self.corrects and generation.response is not None,
            forecasts=forecast_coefficients if self.rule is None else self.rule(sigmas),
        )


class NoGains(ExactCount):
    """An error of the output counts the same at every step, whatever solver and model do to it.

    Errors of different steps do not meet, so that there is nothing a correction could make good.
    How runs add up is the policy's.
    """

    corrects = False

    def _risks(self, generation: Generation, longest: int) -> Risks:
        risks = super()._risks(generation, longest)
        gram = self._gram(generation).numpy()
        runs = np.nonzero(risks.rows >= 0)
        damage = risks.damage.copy()
        damage[runs] = squared_errors(gram, *runs, risks.coefficients[risks.rows[runs]])
        return dataclasses.replace(risks, damage=damage)


def squared_errors(
    gram: np.ndarray,
    previous: np.ndarray,
    latest: np.ndarray,
    following: np.ndarray,
    coefficients: np.ndarray,
) -> np.ndarray:
    """Summed squared error of the output over each run, (B,); see `Runs`, and (S, S) for `gram`."""
    inside = latest[:, None] + 1 + np.arange(coefficients.shape[1])  # (B, P)
    skipped = inside < following[:, None]
    steps = previous[:, None], latest[:, None], inside.clip(max=len(gram) - 1)
    nodes = np.stack(np.broadcast_arrays(*steps))
    shares = np.stack([-coefficients, 1 + coefficients, np.full(inside.shape, -1.0)])
    inner = gram[nodes[:, None], nodes[None]]
    errors = np.einsum("ibp,jbp,ijbp->bp", shares, shares, inner).clip(min=0)  # not by rounding
    return (errors * skipped).sum(axis=1)


class OneStepLabel(NoGains):
    """Damage is the sum of the output's squared errors: nothing is learned from roll-outs."""

    def _weights(self, risks: Risks) -> np.ndarray:
        return risks.damage


class NoReaction(ExactCount):
    """Errors reach the video as the solver alone says, and are corrected for that.

    Of what is learned from roll-outs only how runs add up is left.
    """

    def dynamics(self, generation: Generation) -> Dynamics:
        """Of a model that pays its latents no heed, and is sure of it."""
        response = super().dynamics(generation).response
        nothing, final = torch.zeros_like(response[0]), response[:, -1]
        return Dynamics(response, nothing, final, nothing)


class NoCorrections(ExactCount):
    """Computed steps correct nothing, and the steps are chosen for that."""

    corrects = False


class FixedPower(ExactCount):
    """Runs add up with a given power: 0.5 adds amplitudes, 1 energies."""

    power = 1.0

    @classmethod
    def at_power(cls, policy: LearnedPolicy, power: float) -> Self:
        """The variant with this power."""
        other = cls.of(policy)
        other.power = power
        return other

    def _weights(self, risks: Risks) -> np.ndarray:
        return risks.damage**self.power


class WorstRun(ExactCount):
    """Only the worst run counts, the limit of a large power; ties go to the least sum."""

    def _choose(self, risks: Risks, count: int | None) -> np.ndarray:
        return shortest_path(without_worse_runs(self._weights(risks), count), count)


def without_worse_runs(weight: np.ndarray, count: int) -> np.ndarray:
    """Bar every run that weighs more than the worst run of the plan whose worst run is least.

    Args:
        weight: (S, S, S + 1), see `shortest_path`.
        count: Steps to compute.

    Returns:
        The weights, with infinity where barred.
    """
    levels = np.unique(weight[np.isfinite(weight)])

    def barred(level: int) -> np.ndarray:
        return np.where(weight <= levels[level], weight, np.inf)

    def feasible(level: int) -> bool:
        *_, (least, _) = shortest_paths(barred(level), count)
        return bool(np.isfinite(least))

    return barred(bisect.bisect_left(range(len(levels) - 1), True, key=feasible))


class GivenSteps(ExactCount):
    """Steps from elsewhere.

    Attributes:
        choose: From (S, K) to the steps to compute, bool (S,) with step 0 among them.
    """

    choose: Callable[[int, int], np.ndarray]

    @classmethod
    def chosen_by(cls, policy: LearnedPolicy, choose: Callable[[int, int], np.ndarray]) -> Self:
        """The variant with this choice of steps."""
        other = cls.of(policy)
        other.choose = choose
        return other

    def _risks(self, generation: Generation, longest: int) -> Risks:
        steps = generation.num_steps
        chosen = np.flatnonzero(self.choose(steps, self._affordable(steps)))
        longest = max(longest, int(np.diff(chosen, append=steps).max()) - 1)
        return super()._risks(generation, longest)

    def _choose(self, risks: Risks, count: int | None) -> np.ndarray:
        return self.choose(len(risks.damage), count)


def even_cadence(num_steps: int, count: int) -> np.ndarray:
    """Steps to compute, evenly spaced from the first on: bool (S,)."""
    return np.isin(np.arange(num_steps), np.arange(count) * num_steps // count)


def warmed_up_cadence(num_steps: int, count: int) -> np.ndarray:
    """Foresight's warm-up, then evenly spaced: bool (S,); even where the budget ends before."""
    warmup = warmup_length(None, num_steps)
    left, rest = count - warmup, num_steps - warmup
    if left < 1:
        return even_cadence(num_steps, count)
    # The first steps after the warm-up are skipped, the last one of each period is computed.
    later = warmup + (np.arange(1, left + 1) * rest) // left - 1
    return np.isin(np.arange(num_steps), np.concatenate([np.arange(warmup), later]))
