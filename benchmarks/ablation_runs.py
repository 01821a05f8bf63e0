"""One video under many plans: what is generated, and the rows that are kept of it."""

import abc
import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

from foresight.evaluation import Video
from foresight.metrics import psnr
from foresight.pipeline import Generated, generate
from foresight.policies.base import Policy

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Bench:
    """Generates a video again, and compares it with the uncached one.

    Attributes:
        pipe: A diffusers pipeline.
        video: Prompt, seed and configuration.
        reference: The uncached generation.
        advance: Called after every generation.
    """

    pipe: Any
    video: Video
    reference: Generated
    advance: Callable[[], Any]

    def run(self, policy: Policy) -> Generated:
        """Generate the video under a policy."""
        video = self.video
        made = generate(self.pipe, video.prompt.text, video.config, seed=video.seed, policy=policy)
        self.advance()
        return made

    def final_error(self, made: Generated) -> float:
        """Mean squared error of the final latents over the mean square of the uncached ones."""
        truth = self.reference.latents.float()
        error = (made.latents.float() - truth).square().mean() / truth.square().mean()
        return float(error)

    def row(
        self, made: Generated, variant: str, *, speedup: float = math.nan, setting: str = ""
    ) -> Row:
        """One line of the results; `speedup` is what the number of computed steps stands for."""
        return {
            "variant": variant,
            "speedup": speedup,
            "setting": setting,
            "prompt": self.video.prompt.text,
            "seed": self.video.seed,
            **dataclasses.asdict(self.video.config),
            "computed": made.report.compute_fraction,
            "psnr": psnr(self.reference.frames, made.frames),
            "final_error": self.final_error(made),
        }


class Run(abc.ABC):
    """What is generated and kept together, of one video at a time.

    Attributes:
        name: Of its folder.
        num_generations: Of one video, at most.
    """

    name: str
    num_generations: int

    @abc.abstractmethod
    def rows(self, bench: Bench) -> list[Row]:
        """Generate and measure."""


class PlannedRun(Run):
    """A policy at several speed-ups."""

    def __init__(self, name: str, policy: Policy, speedups: Sequence[float]) -> None:
        self.name = name
        self.policies = {speedup: policy.at(speedup) for speedup in speedups}
        self.num_generations = len(speedups)

    def rows(self, bench: Bench) -> list[Row]:
        """One row per speed-up."""
        return [
            bench.row(bench.run(policy), self.name, speedup=speedup, setting=policy.setting)
            for speedup, policy in self.policies.items()
        ]
