"""The learned policy with another stand-in for skipped steps than its own forecasts."""

import copy
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from foresight.plan import COMPUTE, Plan
from foresight.policies.base import Generation, Policy
from foresight.policies.learned import LearnedPolicy
from foresight.policies.network import NUM_CONFIG_FEATURES, ReuseModel
from policy_training.dataset import QueryBatches
from policy_training.generations import ProfiledGeneration, make_buckets
from policy_training.labels import Moments, forecast_error
from policy_training.rollouts import sources

Answers = dict[str, Tensor]
NUM_QUERIES = 32_768
SHARES = np.linspace(0, 2, 81)
LONGEST_LAG = 4


def answering(policy: LearnedPolicy, change: Callable[[Tensor, Answers], Answers]) -> LearnedPolicy:
    """The policy with its network's answers changed.

    Args:
        policy: Stays as it is.
        change: From levels (Q, 3) and the network's answers, (Q,) each, to other answers.
    """
    other = copy.copy(policy)
    other.model = copy.deepcopy(policy.model)
    other.model.register_forward_hook(lambda _, args, answers: change(args[1], answers))
    return other


def reusing(levels: Tensor, answers: Answers) -> Answers:
    """Answers by which a forecast is never better than reuse."""
    del levels
    return {**answers, "log_forecast": answers["log_reuse"]}


def constant(coefficient: float) -> Callable[[Tensor, Answers], Answers]:
    """Answers with one coefficient for all forecasts."""
    return lambda levels, answers: _with_coefficient(
        torch.full_like(levels[:, 0], coefficient), answers
    )


def damped_line(damping: float) -> Callable[[Tensor, Answers], Answers]:
    """Answers that go on along the line through two computed steps, by a share of the way."""
    return lambda levels, answers: _with_coefficient(damping * line(levels), answers)


def line(levels: Tensor) -> Tensor:
    """Coefficients (Q,) of linear extrapolation over noise levels (Q, 3) of s, a, p; 0 if p = a."""
    target, latest, previous = levels.unbind(-1)
    before = previous - latest
    return torch.where(before > 1e-6, (latest - target) / before.clamp(min=1e-6), 0.0)


def _with_coefficient(given: Tensor, answers: Answers) -> Answers:
    """Answers for given coefficients: off the best one the error grows as a parabola."""
    change, left = answers["log_reuse"].exp(), answers["log_forecast"].exp()
    best = answers["coefficient"]
    known = best.abs() > 1e-3
    miss = (given / torch.where(known, best, 1.0) - 1) ** 2
    error = torch.where(known, left + miss * (change - left).clamp(min=0), change)
    return {**answers, "coefficient": given, "log_forecast": error.log()}


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
        actions = self.inner.begin(generation).actions[:, 0]
        levels = torch.from_numpy(np.asarray(generation.sigmas)).float()[sources(actions)]
        nothing = self.stack.context(torch.zeros(1, 1), torch.zeros(1, NUM_CONFIG_FEATURES))
        entity = torch.zeros(len(actions), dtype=torch.long)
        betas = self.stack(entity, levels, nothing.expand(len(actions), -1))["coefficient"]
        return Plan.whole_stack(actions == COMPUTE, betas.numpy(), generation.num_blocks)


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
