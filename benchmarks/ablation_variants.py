"""The variants: a network, a choice of the steps to compute, and weights for what stands in."""

import bisect
import dataclasses
import itertools
from collections.abc import Callable

import numpy as np
import scipy.stats

from benchmarks.ablation_steps import evenly_spaced, foresight_steps, warmed_up_cadence
from foresight.plan import Plan, plain_weights, skipped_runs
from foresight.planner import refine, shortest_paths
from foresight.policies.base import Generation
from foresight.policies.learned import LearnedPolicy
from foresight.policies.multistep import carry_out, coordinates, local_energies
from foresight.policies.reaction import Reaction, gains_after
from foresight.solver import Solver

FULL = "full"
MOST_FORECAST = (-1.0, 8.0)  # how far a forecast from two points may go


@dataclasses.dataclass(frozen=True)
class Known:
    """What a variant decides from; S steps.

    Attributes:
        path: (S, R) predictions to be expected of this prompt, see `carry_out`.
        mean: (S, R) of the mean prompt, for which steps are chosen.
        own: (S, S) inner products of those of this very generation, uncached.
        solver: Of the generation.
        sigmas: (S,) noise levels.
        reaction: At these.
        start: Where the policy's search for so many steps starts.
        steps: The policy's own choice of so many steps.
    """

    path: np.ndarray
    mean: np.ndarray
    own: np.ndarray
    solver: Solver
    sigmas: np.ndarray
    reaction: Reaction
    start: Callable[[int], np.ndarray]
    steps: Callable[[int], np.ndarray]

    @classmethod
    def of(cls, policy: LearnedPolicy, generation: Generation, own: np.ndarray) -> "Known":
        """What a policy predicts of a generation, and its `own` inner products."""
        return cls(
            path=policy.search.path(generation),
            mean=policy.search.mean_path(generation),
            own=own,
            solver=generation.solver,
            sigmas=np.asarray(generation.sigmas),
            reaction=policy.search.reaction(generation).cautious(),
            start=lambda count: policy.search.start(generation, count),
            steps=lambda count: policy.search.steps(generation, count),
        )


When = Callable[[Known, int], np.ndarray]  # a number of steps: which, bool (S,)
How = Callable[[Known, np.ndarray], np.ndarray]  # which are computed: weights (S, HISTORY)


def learned_steps(known: Known, count: int) -> np.ndarray:
    """As the policy chooses them."""
    return known.steps(count)


def learned_weights(known: Known, computed: np.ndarray) -> np.ndarray:
    """As the policy weights them."""
    return carry_out(known.path, known.solver, known.reaction, computed[None])[0][0]


def least_summed(known: Known, count: int, gains: np.ndarray | float) -> np.ndarray:
    """The choice whose runs, each by itself, leave least in sum; by the mean prompt."""
    left = local_energies(known.mean, known.solver, len(known.sigmas)) * gains
    *_, (_, computed) = shortest_paths(left, count)
    return computed


def least_worst(known: Known, count: int) -> np.ndarray:
    """The choice whose worst run, by itself, leaves least; of several that with the least sum."""
    gains = gains_after(known.solver, known.reaction)
    left = local_energies(known.mean, known.solver, len(known.sigmas)) * gains

    def within(bound: float) -> tuple[float, np.ndarray]:
        *_, found = shortest_paths(np.where(left <= bound, left, np.inf), count)
        return found

    bounds = np.unique(left[np.isfinite(left)])
    least = bisect.bisect_left(bounds, True, key=lambda bound: np.isfinite(within(bound)[0]))
    return within(bounds[least])[1]


def most_changed(known: Known, count: int) -> np.ndarray:
    """The steps to which predictions change most from the step before, of the mean prompt."""
    changes = (np.diff(known.mean, axis=0) ** 2).sum(axis=1)
    order = 1 + np.argsort(-changes, kind="stable")
    return np.isin(np.arange(len(known.mean)), [0, *order[: count - 1]])


def searched_steps(known: Known, count: int) -> np.ndarray:
    """As the policy chooses them, anew."""
    start = least_summed(known, count, gains_after(known.solver, known.reaction))
    return refine(
        start, lambda choices: carry_out(known.mean, known.solver, known.reaction, choices)[1]
    )


def unmoved(known: Known) -> Known:
    """The same of a model that does not answer latents that are off."""
    nothing = np.zeros_like(known.reaction.coherent)
    return dataclasses.replace(
        known, reaction=known.reaction._replace(coherent=nothing, spread=nothing)
    )


def uncorrected(known: Known) -> Known:
    """The same with a solver that is not known, so that nothing is made good."""
    return dataclasses.replace(known, solver=known.solver._replace(known=False))


def informed(known: Known) -> Known:
    """The same where what is expected is what comes."""
    own = coordinates(known.own)
    return dataclasses.replace(known, path=own, mean=own)


def shown_so_far(known: Known, computed: np.ndarray, step: int) -> np.ndarray:
    """The path (S, R) to be expected at a step, told what the steps computed by then have shown.

    Changes between those are as large as they were, later ones as much larger or smaller than
    expected as the two latest were.
    """
    own, seen = coordinates(known.own), np.flatnonzero(computed[: step + 1])
    pace = np.ones(len(computed))
    ratios = []
    for before, latest in itertools.pairwise(seen):
        moved, told = (np.linalg.norm(path[latest] - path[before]) for path in (own, known.path))
        ratios.append(moved / told)
        pace[before + 1 : latest + 1] = ratios[-1]
    if ratios:
        pace[seen[-1] + 1 :] = scipy.stats.gmean(ratios[-2:])
    return np.cumsum(np.diff(known.path, axis=0, prepend=0) * pace[:, None], axis=0)


def closed_loop(known: Known, computed: np.ndarray) -> np.ndarray:
    """As the policy weights them, at each step for the path to be expected by then."""
    told = [
        dataclasses.replace(known, path=shown_so_far(known, computed, step))
        for step in range(len(computed))
    ]
    return np.stack([learned_weights(each, computed)[step] for step, each in enumerate(told)])


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
    along = known.path[latest] - known.path[before]
    return (known.path[step] - known.path[latest]) @ along / (along @ along)


def extrapolated(known: Known, step: int, latest: int, before: int) -> float:
    """How far the line goes on."""
    levels = known.sigmas
    return (levels[latest] - levels[step]) / (levels[before] - levels[latest])


PLANNED = {
    "plain reuse": Variant("its steps; the latest prediction as it is", how=plain),
    "no reaction": Variant(
        "its steps; weighted as if the model did not answer latents that are off",
        how=lambda known, computed: learned_weights(unmoved(known), computed),
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
    "no search": Variant(
        "steps whose runs leave least in sum, learned weights",
        when=lambda known, count: known.start(count),
    ),
    "no gain": Variant(
        "the same steps, as if nothing grew or healed afterwards",
        when=lambda known, count: least_summed(known, count, 1.0),
    ),
    "worst segment": Variant(
        "steps of which the worst run leaves least, learned weights", when=least_worst
    ),
    "one-step label": Variant(
        "the steps to which predictions change most from the one before, learned weights",
        when=most_changed,
    ),
    "cadence": Variant("warm-up, then evenly spaced steps; learned weights", when=cadence),
    "cadence, plain reuse": Variant("the same steps, plain reuse", cadence, plain),
    "Foresight's steps": Variant(
        "Foresight's rule for whole steps, told the uncached run; learned weights", foresight
    ),
    "Foresight's steps, plain reuse": Variant("the same steps, plain reuse", foresight, plain),
    "closed loop": Variant(
        "its steps; weighted for the pace that the uncached run shows at those computed so far",
        how=closed_loop,
    ),
    "own Gram matrix": Variant(
        "steps and weights from the uncached run itself: the prompt known perfectly",
        when=lambda known, count: searched_steps(informed(known), count),
        how=lambda known, computed: learned_weights(informed(known), computed),
    ),
    "own steps": Variant(
        "the same steps, learned weights",
        when=lambda known, count: searched_steps(informed(known), count),
    ),
    "own weights": Variant(
        "its steps, the same weights",
        how=lambda known, computed: learned_weights(informed(known), computed),
    ),
}
