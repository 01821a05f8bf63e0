"""What a policy is: for a generation, a plan known before the loop, or a controller that reacts."""

import abc
import dataclasses
import functools
from typing import Any, Literal

import numpy as np
import torch

from foresight.config import GenerationConfig, UserError
from foresight.plan import Plan
from foresight.solver import Solver, euler_solver, solver_of


@dataclasses.dataclass(frozen=True)
class Generation:
    """What is known of a generation before its first step.

    Attributes:
        config: Resolution, frames, steps, guidance.
        timesteps: (S,) as the scheduler has them.
        sigmas: (S,) share of noise per step.
        prompt_embedding: (D,) mean of the prompt's text embedding over its tokens.
        block_names, block_kinds: N blocks in execution order.
        scheduler: A copy of the noise scheduler with its timesteps set and no step taken; None if
            nobody may ask what it makes of predictions.
        prediction_bytes: What keeping the model's prediction of one step takes; 0 if not known.
    """

    config: GenerationConfig
    timesteps: np.ndarray
    sigmas: np.ndarray
    prompt_embedding: np.ndarray
    block_names: tuple[str, ...]
    block_kinds: tuple[str, ...]
    scheduler: Any = None
    prediction_bytes: int = 0

    @functools.cached_property
    def solver(self) -> Solver:
        """What the scheduler makes of predictions, plain Euler where that is not known.

        Only policies that ask pay for it.
        """
        found = None if self.scheduler is None else solver_of(self.scheduler)
        return found or euler_solver(self.sigmas)

    @property
    def num_steps(self) -> int:
        """S."""
        return len(self.sigmas)

    @property
    def num_blocks(self) -> int:
        """N."""
        return len(self.block_names)


class Controller(abc.ABC):
    """Decides block by block while the loop runs; owns no tensors but what it measures with.

    Attributes:
        cached: Whether the runtime keeps a block's residual or its output for reuse.
    """

    cached: Literal["residual", "output"] = "residual"

    @abc.abstractmethod
    def reuses(self, step: int, branch: int, block: int) -> bool:
        """Whether to reuse what is cached of this block."""

    @abc.abstractmethod
    def observe(
        self,
        step: int,
        branch: int,
        block: int,
        output: torch.Tensor,
        cached_output: torch.Tensor | None,
    ) -> None:
        """See what a computed block returned and what it had returned when last computed."""


class Policy(abc.ABC):
    """A way to spend compute. Pure given its inputs: all state lives in the session.

    Attributes:
        name: The built-in's name or the policy folder's name.
        setting: Its knob, as `key=value` pairs.
    """

    name: str
    setting: str = ""

    @abc.abstractmethod
    def begin(self, generation: Generation) -> Plan | Controller:
        """Decide for one generation."""

    def check(self, pipe: Any) -> None:  # noqa: B027 - most policies fit every model
        """Raise `UserError` if the policy does not fit this pipeline."""

    def at(self, speedup: float) -> "Policy":
        """The policy set to a measured speed-up.

        Raises:
            UserError: If its knob is not a speed-up.
        """
        raise UserError(
            f"policy {self.name} takes no speed-up ({speedup:g}); set its own options in [...]"
        )

    def reaching(self, quality: float, confidence: float = 0.9) -> "Policy":
        """The policy set to a PSNR against the uncached video, as fast as that allows.

        Args:
            quality: Wanted, in dB.
            confidence: Share of generations that must reach it.

        Raises:
            UserError: If it cannot promise a quality.
        """
        raise UserError(
            f"policy {self.name} cannot promise a quality ({quality:g} dB); a trained one can"
        )

    def within(self, max_cache_bytes: int) -> "Policy":
        """The policy set to keep no more than so many bytes from step to step.

        Raises:
            UserError: If it cannot be bounded.
        """
        raise UserError(
            f"policy {self.name} cannot be held to {max_cache_bytes} cached bytes; "
            "a trained one can"
        )

    def reconfigure(self, pipe: Any, config: GenerationConfig) -> tuple[GenerationConfig, Any]:
        """The configuration and scheduler to run instead; by default those asked for."""
        return config, pipe.scheduler
