"""The variants: a network, a choice of the steps to compute, and weights for what stands in."""

import dataclasses
from collections.abc import Callable

import numpy as np

from benchmarks.ablation_steps import (
    evenly_spaced,
    foresight_steps,
    least_worst_run,
    warmed_up_cadence,
)
from foresight.plan import Plan, plain_weights, skipped_runs
from foresight.planner import shortest_path
from foresight.policies.base import Generation
from foresight.policies.damage import gains_after
from foresight.policies.learned import LearnedPolicy
from foresight.policies.multistep import (
    LONGEST_RUN,
    doubts_at,
    local_energies,
    multistep_weights,
    with_first_latents,
)
from foresight.solver import Solver, euler_solver

FULL = "full"
MOST_FORECAST = (-1.0, 8.0)  # how far a forecast from two points may go


@dataclasses.dataclass(frozen=True)
class Known:
    """What a variant decides from; S steps.

    Attributes:
        gram: (S + 1, S + 1) inner products to be expected of predictions and first latents.
        own: The same of this very generation, uncached.
        solver: Of the generation.
        sigmas: (S,) noise levels.
        pace: (S, S + 1) how much more than usual runs leave, by the steps around them.
        doubts: (S,) of predictions, see `doubts_at`.
        gains: (S + 1,) what grows of that until the end.
        power: How runs add up.
    """

    gram: np.ndarray
    own: np.ndarray
    solver: Solver
    sigmas: np.ndarray
    pace: np.ndarray
    doubts: np.ndarray
    gains: np.ndarray
    power: float

    @classmethod
    def of(cls, policy: LearnedPolicy, generation: Generation, own: np.ndarray) -> "Known":
        """What a policy predicts of a generation, and its `own` inner products."""
        damage = policy.model.damage
        return cls(
            gram=policy._reference(generation),
            own=own,
            solver=generation.solver or euler_solver(generation.sigmas),
            sigmas=np.asarray(generation.sigmas),
            pace=policy._pace(generation),
            doubts=doubts_at(np.asarray(generation.sigmas)),
            gains=gains_after(damage, generation.sigmas),
            power=damage.power.item(),
        )

    def energies(self, count: int) -> np.ndarray:
        """What runs leave in the latents, (S, S, S + 1), as long as `count` steps may need them."""
        longest = max(LONGEST_RUN, -(-len(self.sigmas) // count))
        return local_energies(self.gram, self.solver, longest) * self.pace

    def damage(self, count: int) -> np.ndarray:
        """What runs add to the damage of a plan, (S, S, S + 1)."""
        return (self.energies(count) * self.gains) ** self.power


def without_latents(known: Known) -> Known:
    """The same of a generation whose first latents are not known."""
    inner = with_first_latents(known.gram[:-1, :-1], np.zeros(len(known.gram)))
    return dataclasses.replace(known, gram=inner)


def uncorrected(known: Known) -> Known:
    """The same with a solver that is not known, so that nothing is made good."""
    return dataclasses.replace(known, solver=known.solver._replace(known=False))


def informed(known: Known) -> Known:
    """The same where what is expected is what comes."""
    return dataclasses.replace(known, gram=known.own, pace=np.ones_like(known.pace))


When = Callable[[Known, int], np.ndarray]  # a number of steps: which, bool (S,)
How = Callable[[Known, np.ndarray], np.ndarray]  # which are computed: weights (S, HISTORY + 1)


def learned_steps(known: Known, count: int) -> np.ndarray:
    """As the policy chooses them."""
    return shortest_path(known.damage(count), count)


def learned_weights(known: Known, computed: np.ndarray) -> np.ndarray:
    """As the policy weights them."""
    return multistep_weights(known.gram, known.solver, computed, known.doubts)


@dataclasses.dataclass(frozen=True)
class Variant:
    """A way to plan.

    Attributes:
        meaning: In a few words.
        when: Chooses the steps to compute.
        how: Weights what stands in.
    """

    meaning: str
    when: When = learned_steps
    how: How = learned_weights

    def plan(
        self, policy: LearnedPolicy, generation: Generation, own: np.ndarray, speedup: float
    ) -> Plan:
        """A plan that computes S / speedup steps, rounded, whatever they cost.

        Args:
            policy: Whose predictions are used.
            generation: What to plan for.
            own: See `Known`.
            speedup: What the number of steps stands for.
        """
        known = Known.of(policy, generation, own)
        computed = self.when(known, max(1, round(generation.num_steps / speedup)))
        return Plan.of_output(computed, self.how(known, computed), generation.num_blocks)


def plain(_: Known, computed: np.ndarray) -> np.ndarray:
    """The latest prediction, as it is."""
    return plain_weights(len(computed))


def cadence(known: Known, count: int) -> np.ndarray:
    """Foresight's warm-up, then evenly spaced steps."""
    return warmed_up_cadence(len(known.sigmas), count)


def foresight(known: Known, count: int) -> np.ndarray:
    """What Foresight's rule comes to, told the uncached predictions."""
    return foresight_steps(known.own, count)


def forecasts(beta: Callable[[Known, int, int, int], float]) -> How:
    """Weights of `v[a] + beta * (v[a] - v[p])`, given what is known and the steps s, a, p."""

    def weights(known: Known, computed: np.ndarray) -> np.ndarray:
        found = plain_weights(len(computed))
        for before, latest, following in skipped_runs(computed):
            for step in range(latest + 1, following) if before < latest else ():
                along = np.clip(beta(known, step, latest, before), *MOST_FORECAST)
                found[step, :2] = 1 + along, -along
        return found

    return weights


def least_squares(known: Known, step: int, latest: int, before: int) -> float:
    """How far v[s] lies along the last difference."""
    difference = np.zeros(len(known.gram))
    difference[[latest, before]] = 1, -1
    along = known.gram @ difference
    return (along[step] - along[latest]) / (difference @ along)


def extrapolated(known: Known, step: int, latest: int, before: int) -> float:
    """How far the line goes on."""
    levels = known.sigmas
    return (levels[latest] - levels[step]) / (levels[before] - levels[latest])


PLANNED = {
    "plain reuse": Variant("its steps; the latest prediction as it is", how=plain),
    "last two predictions": Variant(
        "its steps; the third last is not read",
        how=lambda known, computed: multistep_weights(
            known.gram, known.solver, computed, known.doubts, 2
        ),
    ),
    "one prediction": Variant(
        "its steps; of predictions only the last is read",
        how=lambda known, computed: multistep_weights(
            known.gram, known.solver, computed, known.doubts, 1
        ),
    ),
    "no doubts": Variant(
        "its steps; predictions trusted as if nothing had been skipped before",
        how=lambda known, computed: multistep_weights(known.gram, known.solver, computed),
    ),
    "no latents": Variant(
        "its steps; latents are not weighted",
        how=lambda known, computed: learned_weights(without_latents(known), computed),
    ),
    "no correction": Variant(
        "its steps; those computed stay as they are, the others aim at their own prediction",
        how=lambda known, computed: learned_weights(uncorrected(known), computed),
    ),
    "two-point forecast": Variant(
        "its steps; least squares along the last difference, unscaled and uncorrected",
        how=forecasts(least_squares),
    ),
    "undamped extrapolation": Variant(
        "its steps; the line through two predictions, over the noise level",
        how=forecasts(extrapolated),
    ),
    "even spacing": Variant(
        "evenly spaced steps, learned weights",
        when=lambda known, count: evenly_spaced(len(known.sigmas), count),
    ),
    "no gain": Variant(
        "steps without the damage model: what runs leave adds up",
        when=lambda known, count: shortest_path(known.energies(count), count),
    ),
    "worst run": Variant(
        "steps whose worst run is least",
        when=lambda known, count: least_worst_run(known.damage(count), count),
    ),
    "cadence": Variant("warm-up, then evenly spaced steps; learned weights", when=cadence),
    "cadence, plain reuse": Variant("the same steps, plain reuse", cadence, plain),
    "Foresight's steps": Variant(
        "Foresight's rule for whole steps, told the uncached run; learned weights", foresight
    ),
    "Foresight's steps, plain reuse": Variant("the same steps, plain reuse", foresight, plain),
    "own Gram matrix": Variant(
        "steps and weights from the uncached run itself: the prompt known perfectly",
        when=lambda known, count: learned_steps(informed(known), count),
        how=lambda known, computed: learned_weights(informed(known), computed),
    ),
}
