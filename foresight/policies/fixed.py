"""Policies that do not look at the features: none, given plans, static, random, fewer steps."""

import dataclasses
from typing import Any

import numpy as np
from diffusers import (
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)

from foresight.config import GenerationConfig, UserError
from foresight.plan import COMPUTE, REUSE, Plan
from foresight.policies.base import Generation, Policy


def warmup_length(warmup_steps: int | None, num_steps: int) -> int:
    """The warm-up as given, or Foresight's 15 % of the steps; at least 3, its measuring window."""
    asked = round(0.15 * num_steps) if warmup_steps is None else warmup_steps
    return min(max(3, asked), num_steps)


@dataclasses.dataclass(frozen=True)
class NonePolicy(Policy):
    """Computes everything: the uncached run."""

    name = "none"

    def begin(self, generation: Generation) -> Plan:
        return Plan.from_actions(np.zeros((generation.num_steps, generation.num_blocks)))


@dataclasses.dataclass(frozen=True)
class FixedPlan(Policy):
    """Runs the plan it was given."""

    plan: Plan
    name = "plan"

    def begin(self, generation: Generation) -> Plan:
        return self.plan


@dataclasses.dataclass(frozen=True)
class OneStepPolicy(Policy):
    """Computes the first step and skips the model in all others: what a skipped step takes."""

    name = "one-step"

    def begin(self, generation: Generation) -> Plan:
        steps = np.arange(generation.num_steps)
        return Plan.whole_stack(steps == 0, 0.0 * steps, generation.num_blocks, at_output=True)


@dataclasses.dataclass(frozen=True)
class StaticPolicy(Policy):
    """After a warm-up, compute every `interval`-th step and reuse all blocks in between."""

    interval: int = 2
    warmup_steps: int | None = None
    name = "static"

    def __post_init__(self) -> None:
        if self.interval < 1:
            raise UserError(f"static: `interval` must be at least 1, not {self.interval}")

    @property
    def setting(self) -> str:
        warmup = "" if self.warmup_steps is None else f",warmup_steps={self.warmup_steps}"
        return f"interval={self.interval}{warmup}"

    def begin(self, generation: Generation) -> Plan:
        steps = np.arange(generation.num_steps)
        warmup = warmup_length(self.warmup_steps, generation.num_steps)
        computed = (steps < warmup) | ((steps - warmup + 1) % self.interval == 0)
        actions = np.where(computed, COMPUTE, REUSE)[:, None]
        return Plan.from_actions(np.repeat(actions, generation.num_blocks, axis=1))


@dataclasses.dataclass(frozen=True)
class RandomPolicy(Policy):
    """After a warm-up, reuse each block at each step with probability `share`."""

    share: float = 0.5
    seed: int = 0
    warmup_steps: int | None = None
    name = "random"

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise UserError(f"random: `share` must be in [0, 1], not {self.share}")

    @property
    def setting(self) -> str:
        return f"share={self.share:g}"

    def begin(self, generation: Generation) -> Plan:
        shape = (generation.num_steps, generation.num_blocks)
        reused = np.random.default_rng(self.seed).random(shape) < self.share
        reused[: warmup_length(self.warmup_steps, generation.num_steps)] = False
        return Plan.from_actions(np.where(reused, REUSE, COMPUTE))


@dataclasses.dataclass(frozen=True)
class FewerStepsPolicy(Policy):
    """Run the plain model with a share of the steps, by the same or a second-order solver.

    `solver="same"` keeps the pipeline's scheduler; `"dpm++"` takes DPM-Solver++ 2M (UniPC for flow
    matching), configured from it.
    """

    fraction: float = 0.5
    solver: str = "same"
    name = "fewer-steps"

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise UserError(f"fewer-steps: `fraction` must be in (0, 1], not {self.fraction}")
        if self.solver not in ("same", "dpm++"):
            raise UserError(f'fewer-steps: `solver` must be "same" or "dpm++", not {self.solver!r}')

    @property
    def setting(self) -> str:
        return f"fraction={self.fraction:g},solver={self.solver}"

    def begin(self, generation: Generation) -> Plan:
        return NonePolicy().begin(generation)

    def reconfigure(self, pipe: Any, config: GenerationConfig) -> tuple[GenerationConfig, Any]:
        steps = max(1, round(config.num_inference_steps * self.fraction))
        scheduler = pipe.scheduler
        if self.solver == "dpm++":
            flow = isinstance(scheduler, FlowMatchEulerDiscreteScheduler) or getattr(
                scheduler.config, "use_flow_sigmas", False
            )
            kind = UniPCMultistepScheduler if flow else DPMSolverMultistepScheduler
            scheduler = kind.from_config(scheduler.config)
        return dataclasses.replace(config, num_inference_steps=steps), scheduler
