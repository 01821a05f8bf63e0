"""A family under several plans: what the runtime makes of them, and what plain code does."""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

import foresight
from foresight.plan import COMPUTE, FORECAST, REUSE, Plan, plain_weights
from foresight.policies.fixed import FixedPlan

from .by_hand import ByHand, counted
from .family import STEPS, Family


@functools.cache
def computed(family: Family) -> tuple[tuple[str, ...], torch.Tensor]:
    """The blocks that the runtime finds, in its order, and latents where it computes them all."""
    pipe = family.build()
    with foresight.reuse(pipe, "none") as session:
        latents = family.run(pipe)
    return tuple(session.report().block_names), latents


def columns(family: Family) -> tuple[str, ...]:
    """The blocks that the runtime finds, in its order: the columns of plans."""
    return computed(family)[0]


@functools.cache
def uncached(family: Family) -> torch.Tensor:
    """Latents of a pipeline that was never touched."""
    return family.run(family.build())


def plans(family: Family) -> Iterator[Plan]:
    """Blocks that each go their own way, the whole stack together, and the model's output."""
    rng, width = np.random.default_rng(0), len(columns(family))
    actions, betas = np.zeros((STEPS, width), np.uint8), np.zeros((STEPS, width), np.float32)
    for step, block in np.ndindex(STEPS, width):
        before = (actions[:step, block] == COMPUTE).sum()
        if before and rng.random() < 0.5:
            actions[step, block] = FORECAST if before > 1 else REUSE
    betas[actions == FORECAST] = rng.uniform(-0.4, 0.8, (actions == FORECAST).sum())
    yield Plan(actions, betas)
    computed = np.array([1, 1, 0, 1, 0, 0], bool)
    forecasts = np.array([0, 0, 0.7, 0, 0, -0.4])
    yield Plan.whole_stack(computed, forecasts, width)
    yield Plan.whole_stack(computed, forecasts, width, at_output=True)
    weights = plain_weights(STEPS)
    weights[2:] = (1.5, -0.5, 0), (1.4, -0.1, -0.3), (0.8, 0.4, -0.2), (0.9, 0, 0.1)
    yield Plan.of_output(computed, weights, width)


def run_plan(family: Family, plan: Plan, pipe: Any = None, **others: Any) -> torch.Tensor:
    """Final latents under a plan."""
    pipe = pipe or family.build()
    with foresight.reuse(pipe, FixedPlan(plan)):
        return family.run(pipe, **others)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """A plan carried out by the runtime and by hand."""

    plan: Plan
    latents: torch.Tensor
    calls: list[tuple[int, int, str]]
    reported: np.ndarray
    latents_by_hand: torch.Tensor
    calls_by_hand: list[tuple[int, int, str]]


@functools.cache
def outcomes(family: Family) -> list[Outcome]:
    """Of every plan; none of them is judged yet."""
    made, pipe = [], family.build()
    run_plan(family, next(plans(family)), pipe)  # some models run once more to be observed
    for plan in plans(family):
        by_hand = ByHand(family, plan, columns(family))
        expected = by_hand.run()
        with (
            counted(family, pipe, columns(family)) as calls,
            foresight.reuse(pipe, FixedPlan(plan)) as session,
        ):
            latents = family.run(pipe)
        reported = session.report().actions
        made.append(Outcome(plan, latents, calls, reported, expected, by_hand.computed))
    return made


@functools.cache
def computed_by_hand(family: Family) -> ByHand:
    """Residuals and outputs of all blocks at all steps; the loop by hand is the pipeline's own."""
    plan = Plan.from_actions(np.zeros((STEPS, len(columns(family)))))
    by_hand = ByHand(family, plan, columns(family))
    assert torch.equal(by_hand.run(), uncached(family)), "the loop by hand is another one"
    return by_hand


def distance(one: torch.Tensor, other: torch.Tensor, family: Family) -> float:
    """Greatest difference, in standard deviations of the uncached latents."""
    return float((one - other).abs().max() / uncached(family).std())
