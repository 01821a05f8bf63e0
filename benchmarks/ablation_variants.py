"""The variants that only plan otherwise, each made of the full policy and its traces."""

from collections.abc import Callable, Sequence

from benchmarks.ablation_forecasts import (
    AtStack,
    PlainReuse,
    answering,
    best_constants,
    constant,
    damped_line,
    reusing,
    stack_model,
)
from benchmarks.ablation_policies import (
    ExactCount,
    FixedPower,
    GivenSteps,
    NoCorrections,
    NoGains,
    NoReaction,
    OneStepLabel,
    WorstRun,
    even_cadence,
    warmed_up_cadence,
)
from foresight.policies.base import Policy
from foresight.policies.learned import LearnedPolicy
from policy_training.generations import ProfiledGeneration

Generations = Sequence[ProfiledGeneration]


def _constant(policy: LearnedPolicy, generations: Generations) -> Policy:
    coefficient, _ = best_constants(generations)
    changed = answering(policy, constant(coefficient))
    return ExactCount.of(changed, f"coefficient {coefficient:g}, the best on the traces")


def _damped_line(policy: LearnedPolicy, generations: Generations) -> Policy:
    _, damping = best_constants(generations)
    changed = answering(policy, damped_line(damping))
    return ExactCount.of(changed, f"damping {damping:g}, the best on the traces")


def _stack(policy: LearnedPolicy, generations: Generations) -> Policy:
    stack = stack_model([generation.trace for generation in generations])
    return AtStack(NoCorrections.of(policy), stack)


PLANNED: dict[str, Callable[[LearnedPolicy, Generations], Policy]] = {
    "no-gains": lambda policy, _: NoGains.of(policy),
    "one-step-label": lambda policy, _: OneStepLabel.of(policy),
    "no-reaction": lambda policy, _: NoReaction.of(policy),
    "power-0.5": lambda policy, _: FixedPower.at_power(policy, 0.5),
    "power-1": lambda policy, _: FixedPower.at_power(policy, 1.0),
    "worst-run": lambda policy, _: WorstRun.of(policy),
    "constant": _constant,
    "damped-line": _damped_line,
    "no-corrections": lambda policy, _: NoCorrections.of(policy),
    "stack": _stack,
    "reuse-only": lambda policy, _: NoCorrections.of(answering(policy, reusing)),
    "plain": lambda policy, _: PlainReuse(ExactCount.of(policy)),
    "even": lambda policy, _: GivenSteps.chosen_by(policy, even_cadence),
    "warmed-up": lambda policy, _: GivenSteps.chosen_by(policy, warmed_up_cadence),
    "warmed-up-plain": lambda policy, _: PlainReuse(
        GivenSteps.chosen_by(policy, warmed_up_cadence)
    ),
}
