"""What a peer is: somebody else's cache, run by its own code and measured like every policy."""

import abc
import inspect
import re
from collections.abc import Callable
from typing import Any

import torch
from diffusers.hooks._common import _ALL_TRANSFORMER_BLOCK_IDENTIFIERS
from diffusers.hooks._helpers import TransformerBlockRegistry

from foresight.blocks import find_blocks
from foresight.config import GenerationConfig, UserError
from foresight.hooks import ROOT_HOOK
from foresight.plan import REUSE
from foresight.policies.base import Generation, Policy

ALTERNATING = (
    "its spatial and temporal blocks take turns in two layouts, and this cache takes the first "
    "list's first block and the last list's last one for the ends of one stack"
)
BRANCHES_APART = (
    "it runs the CFG branches one after the other, and this cache would give one branch what it "
    "has kept of the other"
)
_CONTEXT = re.compile(r"cache_context\(\s*[\"']?(\w+)")


class NotApplicableError(UserError):
    """A peer is wrong or does not work on this pipeline; `reason` says why."""

    def __init__(self, name: str, pipe: Any, reason: str) -> None:
        super().__init__(f"policy {name} does not apply to {type(pipe).__name__}: {reason}")
        self.reason = reason


class PeerPolicy(Policy):
    """A published cache that decides and caches by itself.

    Attributes:
        skipped: How its skipped calls are marked in a report: reused or forecast.
        fused_only: Whether it needs both CFG branches in one batch.
    """

    skipped: int = REUSE
    fused_only: bool = False

    def begin(self, generation: Generation) -> Any:
        raise AssertionError(f"{self.name} is run by a PeerSession")

    def check(self, pipe: Any) -> None:
        reason = self.unfit(pipe)
        if reason is not None:
            raise NotApplicableError(self.name, pipe, reason)

    def unfit(self, pipe: Any) -> str | None:
        """Why the peer is wrong on this pipeline, or None."""
        if getattr(pipe, "transformer_2", None) is not None:
            return "it has two transformers, and a peer is installed on one"
        if not hasattr(pipe.transformer, "enable_cache"):
            return f"diffusers has no caches for {type(pipe.transformer).__name__}"
        return BRANCHES_APART if self.fused_only and runs_branches_apart(pipe) else None

    def unfit_for(self, pipe: Any, num_branches: int) -> str | None:
        """Why the peer is wrong where every step has so many forward passes, or None."""
        return BRANCHES_APART if self.fused_only and num_branches > 1 else None

    def prepared(self, pipe: Any, config: GenerationConfig, run: Callable[[], Any]) -> "PeerPolicy":
        """The peer calibrated for a configuration, where its authors calibrate.

        Args:
            pipe: The pipeline.
            config: Of the generations to come.
            run: Runs one such generation to calibrate on. Never timed, and called only once for
                each model, configuration and scheduler.
        """
        return self

    def install(self, pipe: Any) -> None:
        """Put in what has to be there before the pipeline is called."""

    @abc.abstractmethod
    def restart(self, pipe: Any, num_steps: int) -> None:
        """A generation's timesteps are set: begin with an empty cache."""

    @abc.abstractmethod
    def remove(self, pipe: Any) -> None:
        """Take the peer out; harmless if it is not in."""

    @abc.abstractmethod
    def inert(self) -> "PeerPolicy":
        """The peer with its knob set so that nothing is skipped: it must change nothing."""

    @classmethod
    @abc.abstractmethod
    def sweep(cls) -> list["PeerPolicy"]:
        """The peer over its own knob, as `foresight compare` runs it."""

    def units(self, pipe: Any) -> list[tuple[str, torch.nn.Module]]:
        """What its skips are counted in, by name: whole blocks."""
        return [(block.name, block.module) for block in find_blocks(pipe.transformer)]

    def holders(self, pipe: Any) -> list[Any]:
        """The objects that hold its cache: by default the hooks of diffusers' registries."""
        return [
            hook
            for module in pipe.transformer.modules()
            if hasattr(module, "_diffusers_hook")
            for name, hook in module._diffusers_hook.hooks.items()
            if name != ROOT_HOOK
        ]


class DiffusersCache(PeerPolicy):
    """A cache that diffusers ships, put in by `enable_cache` at the start of every generation."""

    @abc.abstractmethod
    def cache_config(self, pipe: Any, num_steps: int) -> Any:
        """What `enable_cache` takes."""

    def restart(self, pipe: Any, num_steps: int) -> None:
        self.remove(pipe)
        pipe.transformer.enable_cache(self.cache_config(pipe, num_steps))

    def remove(self, pipe: Any) -> None:
        if pipe.transformer.is_cache_enabled:
            pipe.transformer.disable_cache()


def cache_contexts(pipe: Any) -> set[str]:
    """The cache contexts that a pipeline's loop enters, read from its source; empty for none."""
    return set(_CONTEXT.findall(inspect.getsource(type(pipe).__call__)))


def runs_branches_apart(pipe: Any) -> bool:
    """Whether a loop's cache contexts tell that a step has more than one forward pass.

    Of a loop that enters no context it is not known. One with `true_cfg_scale` serves a distilled
    model, and runs one branch unless asked for more.
    """
    distilled = "true_cfg_scale" in inspect.signature(type(pipe).__call__).parameters
    return bool(cache_contexts(pipe) - {"cond_uncond"}) and not distilled


def one_stack_misfit(pipe: Any) -> str | None:
    """Why diffusers cannot take a model's blocks for one stack with a first and a last, or None."""
    for name, stack in pipe.transformer.named_children():
        if name in _ALL_TRANSFORMER_BLOCK_IDENTIFIERS and isinstance(stack, torch.nn.ModuleList):
            if name.startswith("temporal"):
                return ALTERNATING
            kind = type(stack[0])
            try:
                TransformerBlockRegistry.get(kind)
            except ValueError:
                return f"diffusers does not know how to read its {kind.__name__}"
    return None
