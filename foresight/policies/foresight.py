"""The Foresight heuristic (Adnan et al., NeurIPS 2025, arXiv 2506.00329), as the paper has it."""

import dataclasses
from typing import Literal

import torch
from torch.nn import functional

from foresight.config import UserError
from foresight.policies.base import Controller, Generation, Policy
from foresight.policies.fixed import warmup_length


@dataclasses.dataclass(frozen=True)
class ForesightPolicy(Policy):
    """Per-block thresholds measured in a warm-up.

    Args:
        threshold: The paper's gamma: a block is reused while its change is at most gamma * lambda.
        recompute_interval: The paper's R: after the warm-up every R-th step computes all blocks;
        the
            R - 1 steps before it may reuse ("N1R2", "N2R3").
        warmup_steps: The paper's W, computed in full; 15 % of the steps if not given.
        cache: Keep block outputs, as the paper does, or residuals.
    """

    threshold: float = 0.5
    recompute_interval: int = 2
    warmup_steps: int | None = None
    cache: Literal["output", "residual"] = "output"
    name = "foresight"

    def __post_init__(self) -> None:
        if self.threshold < 0:
            raise UserError(f"foresight: `threshold` must not be negative, is {self.threshold}")
        if self.recompute_interval < 1:
            raise UserError(
                f"foresight: `recompute_interval` must be at least 1, not {self.recompute_interval}"
            )
        if self.cache not in ("output", "residual"):
            raise UserError(
                f'foresight: `cache` must be "output" or "residual", not {self.cache!r}'
            )

    @property
    def setting(self) -> str:
        setting = f"threshold={self.threshold:g},recompute_interval={self.recompute_interval}"
        warmup = "" if self.warmup_steps is None else f",warmup_steps={self.warmup_steps}"
        return f"{setting}{warmup},cache={self.cache}"

    def begin(self, generation: Generation) -> Controller:
        return ForesightController(self, warmup_length(self.warmup_steps, generation.num_steps))


class ForesightController(Controller):
    """The state of the rule over one generation; per CFG branch and block.

    lambda = sum over the last three warm-up steps t of 10^-(W - t) * MSE(x(t), x(t-1)), with t
    counted from 1 and W the last warm-up step; delta = MSE(x(t), cache), measured whenever the
    block is computed and has a cache. Reading delta is the rule's host sync.
    """

    def __init__(self, policy: ForesightPolicy, warmup: int) -> None:
        self.cached = policy.cache
        self._policy, self._warmup = policy, warmup
        self._scale: dict[tuple[int, int], float] = {}
        self._change: dict[tuple[int, int], float] = {}

    def reuses(self, step: int, branch: int, block: int) -> bool:
        since = step - self._warmup
        if since < 0 or (since + 1) % self._policy.recompute_interval == 0:
            return False
        key = branch, block
        if key not in self._scale:  # a branch that began after the warm-up
            return False
        return self._change[key] <= self._policy.threshold * self._scale[key]

    def observe(
        self,
        step: int,
        branch: int,
        block: int,
        output: torch.Tensor,
        cached_output: torch.Tensor | None,
    ) -> None:
        if cached_output is None or step < self._warmup - 3:
            return
        key = branch, block
        change = functional.mse_loss(output.float(), cached_output.float()).item()
        self._change[key] = change
        if step < self._warmup:
            weight = 10.0 ** -(self._warmup - 1 - step)
            self._scale[key] = self._scale.get(key, 0.0) + weight * change
