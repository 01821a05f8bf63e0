"""What a session reports of a generation."""

import dataclasses

import numpy as np

from foresight.plan import COMPUTE, FORECAST, REUSE, Plan


@dataclasses.dataclass(frozen=True)
class Report:
    """What was computed and reused in one generation.

    Attributes:
        actions: uint8 (S, N) as executed: COMPUTE, REUSE or FORECAST.
        block_names: N, in execution order.
        plan: What had been planned; None for policies that react.
        cache_bytes: Most bytes of residuals held at once.
        plan_seconds: From the first forward call to the decision.
        denoise_seconds: From the scheduler's start to its last step, planning included.
    """

    actions: np.ndarray
    block_names: list[str]
    plan: Plan | None
    cache_bytes: int
    plan_seconds: float
    denoise_seconds: float

    @property
    def compute_fraction(self) -> float:
        """Share of block calls that were executed."""
        return float((self.actions == COMPUTE).mean())

    def __str__(self) -> str:
        marks = {COMPUTE: "#", REUSE: ".", FORECAST: "~"}
        steps = self.actions.shape[0]
        lines = [
            f"{self.compute_fraction:.1%} of {self.actions.size} block calls computed "
            f"over {steps} steps, {self.cache_bytes / 2**20:.2f} MiB cached, "
            f"{self.denoise_seconds:.2f} s denoising",
            "# computed  . reused  ~ forecast; one column a step",
        ]
        width = max(map(len, self.block_names), default=0)
        lines += [
            f"{name:>{width}} {''.join(marks[int(a)] for a in column)}"
            for name, column in zip(self.block_names, self.actions.T, strict=True)
        ]
        return "\n".join(lines)
