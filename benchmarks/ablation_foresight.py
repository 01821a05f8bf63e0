"""Foresight's own decisions per block, with plain reuse and with the policy's forecasts."""

import itertools

import numpy as np
import torch

from benchmarks.ablation_forecasts import sources
from benchmarks.ablation_policies import ExactCount
from benchmarks.ablation_runs import Bench, Row, Run
from foresight.plan import COMPUTE, FORECAST, REUSE, Plan
from foresight.policies.base import Generation
from foresight.policies.foresight import ForesightPolicy
from foresight.policies.learned import LearnedPolicy

THRESHOLDS = (0.5, 1.0, 2.0, 4.0)
INTERVALS = ((2, None), (3, None), (5, 3))  # recompute interval, warm-up


class Following(ExactCount):
    """Computes the blocks that were computed in another run, and forecasts the others.

    Attributes:
        actions: (S, N) of that run.
    """

    actions: np.ndarray

    @classmethod
    def run_of(cls, policy: LearnedPolicy, actions: np.ndarray) -> "Following":
        """The variant that follows these actions."""
        other = cls.of(policy)
        other.actions = actions
        return other

    @torch.no_grad()
    def begin(self, generation: Generation) -> Plan:
        """Decide for one generation."""
        steps, blocks = self.actions.shape
        computed = (self.actions == COMPUTE).T
        places = np.stack([sources(column) for column in computed], axis=1)  # (S, N, 3)
        levels = torch.from_numpy(np.asarray(generation.sigmas)[places]).float().flatten(0, 1)
        entity = torch.arange(1, blocks + 1).repeat(steps)
        out = self.model(entity, levels, self._context(generation).expand(len(entity), -1))
        better = (out["log_forecast"] < out["log_reuse"]) & (out["coefficient"] != 0)
        skipped = self.actions != COMPUTE
        forecast = skipped & better.view(steps, blocks).numpy()
        actions = np.select([forecast, skipped], [FORECAST, REUSE], COMPUTE).astype(np.uint8)
        betas = out["coefficient"].view(steps, blocks).numpy()
        return Plan(actions, np.where(forecast, betas, 0).astype(np.float32))


class ForesightRun(Run):
    """Foresight over its settings: outputs reused, residuals reused, and residuals forecast.

    The last takes the decisions that the second came to in this very video.
    """

    name = "foresight"

    def __init__(self, policy: LearnedPolicy) -> None:
        self.policy = policy
        self.settings = list(itertools.product(THRESHOLDS, INTERVALS))
        self.num_generations = 3 * len(self.settings)

    def rows(self, bench: Bench) -> list[Row]:
        """Three rows per setting."""
        rows = []
        for threshold, (interval, warmup) in self.settings:
            knobs = threshold, interval, warmup
            outputs, residuals = (
                ForesightPolicy(*knobs, cache=cache) for cache in ("output", "residual")
            )
            rows.append(bench.row(bench.run(outputs), "foresight-output", setting=outputs.setting))
            made = bench.run(residuals)
            rows.append(bench.row(made, "foresight-residual", setting=residuals.setting))
            followed = bench.run(Following.run_of(self.policy, made.report.actions))
            rows.append(bench.row(followed, "foresight-forecast", setting=residuals.setting))
        return rows
