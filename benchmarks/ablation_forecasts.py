"""The learned policy with another stand-in for skipped steps than its own forecasts."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.ablation_policies import ExactCount, Rule
from foresight.plan import COMPUTE, Plan
from foresight.policies.base import Generation, Policy
from foresight.policies.learned import LearnedPolicy
from foresight.policies.network import NUM_CONFIG_FEATURES, ReuseModel
from foresight.policies.risks import Forecasts, forecast_coefficients
from policy_training.dataset import QueryBatches
from policy_training.generations import ProfiledGeneration, make_buckets
from policy_training.labels import Moments, forecast_error

NUM_QUERIES = 32_768
SHARES = np.linspace(0, 2, 81)
LONGEST_LAG = 4


def answering(policy: LearnedPolicy, rule: Rule) -> ExactCount:
    """The policy with other answers to how far forecasts go, its steps chosen for them.

    Args:
        policy: Stays as it is.
        rule: Gives the coefficients.
    """
    other = ExactCount.of(policy)
    other.rule = rule
    return other


def reusing(sigmas: Tensor) -> Forecasts:
    """The rule that forecasts nothing."""
    return constant(0.0)(sigmas)


def constant(coefficient: float) -> Rule:
    """The rule of one coefficient for all forecasts."""

    def forecasts(gram: Tensor, previous: Tensor, latest: Tensor, length: int) -> Tensor:
        possible = (previous < latest).to(gram)
        return coefficient * possible[:, None].expand(-1, length)

    return lambda _: forecasts


def damped_line(damping: float) -> Rule:
    """The rule to go on along the line through two computed steps, by a share of the way."""

    def rule(sigmas: Tensor) -> Forecasts:
        on_a_line = torch.outer(sigmas, sigmas)  # the Gram matrix of such outputs
        return lambda _, *run: damping * forecast_coefficients(on_a_line, *run)

    return rule


def line(levels: Tensor) -> Tensor:
    """Coefficients (Q,) of linear extrapolation over noise levels (Q, 3) of s, a, p; 0 if p = a."""
    target, latest, previous = levels.unbind(-1)
    before = previous - latest
    return torch.where(before > 1e-6, (latest - target) / before.clamp(min=1e-6), 0.0)


def sources(computed: np.ndarray) -> np.ndarray:
    """Steps s, a, p for each step of a plan that computes some, bool (S,): int (S, 3).

    A computed step is its own source; p = a where nothing was computed before a.
    """
    order, number = np.flatnonzero(computed), np.cumsum(computed) - 1
    places = [np.arange(len(computed)), order[number], order[np.maximum(number - 1, 0)]]
    return np.stack(places, axis=1)


@dataclasses.dataclass(frozen=True)
class PlainReuse(Policy):
    """The steps that a policy computes; in between, its output is reused as it is."""

    inner: LearnedPolicy
    name = "plain-reuse"

    def at(self, speedup: float) -> "PlainReuse":
        """The policy set to a speed-up."""
        return PlainReuse(self.inner.at(speedup))

    def begin(self, generation: Generation) -> Plan:
        """Decide for one generation."""
        computed = self.inner.begin(generation).actions[:, 0] == COMPUTE
        betas = np.zeros(len(computed))
        return Plan.whole_stack(computed, betas, generation.num_blocks, at_output=True)


@dataclasses.dataclass(frozen=True)
class AtStack(Policy):
    """The steps that a policy computes; in between, the residual of all blocks is forecast.

    Attributes:
        inner: Chooses the steps.
        stack: From `stack_model`.
    """

    inner: LearnedPolicy
    stack: ReuseModel
    name = "at-stack"

    def at(self, speedup: float) -> "AtStack":
        """The policy set to a speed-up."""
        return AtStack(self.inner.at(speedup), self.stack)

    @torch.no_grad()
    def begin(self, generation: Generation) -> Plan:
        """Decide for one generation."""
        computed = self.inner.begin(generation).actions[:, 0] == COMPUTE
        sigmas = torch.from_numpy(np.asarray(generation.sigmas)).float()
        nothing = self.stack.context(torch.zeros(1, 1), torch.zeros(1, NUM_CONFIG_FEATURES))
        gram = self.stack.gram(sigmas, nothing)[0]
        step, latest, previous = torch.from_numpy(sources(computed)).unbind(1)
        after = forecast_coefficients(
            gram, previous, latest, len(gram)
        )  # [s, i]: of step a + 1 + i
        betas = after[step, (step - latest - 1).clamp(min=0)]
        return Plan.whole_stack(computed, betas.numpy(), generation.num_blocks)


def stack_model(traces: list[dict[str, Any]]) -> ReuseModel:
    """What the mean Gram matrix of the whole stack's residual says, as a network not trained.

    Taken over the generations with the most steps, as the policy's own kernel is.
    """
    most = max(len(trace["sigmas"]) for trace in traces)
    finest = [trace for trace in traces if len(trace["sigmas"]) == most]
    grams = [trace["group_gram"][trace["group_names"].index("stack")] for trace in finest]
    model = ReuseModel(num_blocks=0, prompt_width=1, num_levels=most)
    grid = torch.from_numpy(finest[0]["sigmas"]).float()
    model.fit_kernel(grid, torch.from_numpy(np.mean(grams, axis=0))[None].float())
    return model.eval()


def best_constants(generations: Sequence[ProfiledGeneration]) -> tuple[float, float]:
    """The coefficient, and the damping of the line, that suit all forecasts of the output best.

    Both leave the least mean log error, over the lags that plans mostly have.
    """
    buckets = make_buckets(list(generations))
    asked = QueryBatches(buckets, batch_size=NUM_QUERIES, num_batches=1, seed=0)[0]
    lags = -asked.steps.diff(dim=1)  # (Q, 2)
    wanted = (asked.entity == 0) & (lags <= LONGEST_LAG).all(dim=1) & (asked.moments.motion > 0)
    query = Moments(*(values[wanted] for values in asked.moments))
    whole = line(asked.levels[wanted])

    def best(coefficients: Tensor) -> float:
        left = [forecast_error(query, share * coefficients).log().mean() for share in SHARES]
        return float(SHARES[int(torch.stack(left).argmin())])

    return best(torch.ones_like(whole)), best(whole)
