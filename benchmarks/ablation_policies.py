"""The learned policy with its choice of steps changed; all compute an exact number of steps.

Whole-stack plans cost the same per computed step, so that two of them with as many computed steps
cost the same without any timing.
"""

import bisect
import dataclasses
from collections.abc import Callable
from typing import Self

import numpy as np

from foresight.plan import Plan
from foresight.planner import run_weights, shortest_path, shortest_paths
from foresight.policies.base import Generation
from foresight.policies.fixed import warmup_length
from foresight.policies.learned import LearnedPolicy
from foresight.policies.risks import Risks


class ExactCount(LearnedPolicy):
    """Computes round(S / speedup) steps, whatever they cost.

    Attributes:
        detail: What else a table must say of it.
    """

    detail = ""

    @classmethod
    def of(cls, policy: LearnedPolicy, detail: str = "") -> Self:
        """This variant of a policy."""
        other = cls(policy.model, policy.fingerprint, policy.costs, name=policy.name)
        other.detail = detail
        return other

    @property
    def setting(self) -> str:
        """Its detail."""
        return self.detail

    def _affordable(self, steps: int) -> int:
        return max(1, round(steps / self.speedup))


class NoGains(ExactCount):
    """An error of the output counts the same at every step."""

    def _predict(
        self, generation: Generation, longest: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        amplitude, coefficients, gain = super()._predict(generation, longest)
        return amplitude / gain, coefficients, np.ones_like(gain)


class NoCorrections(ExactCount):
    """Plans as for a solver whose response nobody knows."""

    def begin(self, generation: Generation) -> Plan:
        """Decide for one generation."""
        generation = dataclasses.replace(generation, scheduler=None)
        return super().begin(generation)


class OneStepLabel(NoGains):
    """Damage is the sum of the output's squared errors: nothing is learned from roll-outs."""

    def _weights(self, risks: Risks) -> np.ndarray:
        return run_weights(risks.amplitude**2, 0.5)


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
        return run_weights(risks.amplitude, self.power, risks.between, risks.leak)


class WorstRun(ExactCount):
    """Only the worst run counts, the limit of a large power; ties go to the least sum."""

    def _choose(self, risks: Risks, count: int | None) -> np.ndarray:
        return shortest_path(without_worse_runs(self._weights(risks), count), count)


def without_worse_runs(weight: np.ndarray, count: int) -> np.ndarray:
    """Bar every run that weighs more than the worst run of the plan whose worst run is least.

    Args:
        weight: (S, S, S + 1) as from `run_weights`.
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
        return super()._risks(generation, generation.num_steps)

    def _choose(self, risks: Risks, count: int | None) -> np.ndarray:
        return self.choose(len(risks.amplitude), count)


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
