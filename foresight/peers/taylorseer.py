"""TaylorSeer, as diffusers ships it."""

import dataclasses
from typing import Any

import torch
from diffusers import TaylorSeerCacheConfig

from foresight.blocks import find_blocks
from foresight.config import UserError
from foresight.peers.base import DiffusersCache, PeerPolicy
from foresight.plan import FORECAST


@dataclasses.dataclass(frozen=True)
class TaylorSeerPolicy(DiffusersCache):
    """Between computed steps, extrapolate outputs by a Taylor polynomial over steps.

    Liu et al. 2025, arXiv 2503.06923.

    Attributes:
        interval: A step is computed every so many steps.
        order: Of the polynomial.
        warmup_steps: Computed first.
        outputs: What is forecast: the output of every block (`blocks`), or of the last projection
            alone, with all blocks skipped (`lite`).
    """

    interval: int = 3
    order: int = 1
    warmup_steps: int = 3
    outputs: str = "blocks"
    name = "taylorseer"
    skipped = FORECAST

    def __post_init__(self) -> None:
        if min(self.interval, self.warmup_steps) < 1 or self.order < 0:
            raise UserError(
                "taylorseer: `interval` and `warmup_steps` must be at least 1 and `order` at "
                f"least 0, not {self.interval}, {self.warmup_steps} and {self.order}"
            )
        if self.outputs not in ("blocks", "lite"):
            raise UserError(
                f'taylorseer: `outputs` must be "blocks" or "lite", not {self.outputs!r}'
            )

    @property
    def setting(self) -> str:
        return f"interval={self.interval},order={self.order},outputs={self.outputs}"

    def inert(self) -> "TaylorSeerPolicy":
        return dataclasses.replace(self, interval=1)

    @classmethod
    def sweep(cls) -> list[PeerPolicy]:
        settings = ((2, 1), (3, 1), (4, 1), (5, 1), (6, 1), (3, 2), (5, 2))
        return [cls(i, o, outputs=kind) for kind in ("blocks", "lite") for i, o in settings]

    def unfit(self, pipe: Any) -> str | None:
        if self.outputs == "lite" and not hasattr(pipe.transformer, "proj_out"):
            return "its lite mode needs a last layer that is called proj_out"
        return super().unfit(pipe)

    def cache_config(self, pipe: Any, num_steps: int) -> TaylorSeerCacheConfig:
        dtype: torch.dtype = pipe.transformer.dtype  # its default, bf16, would round fp32 models
        # diffusers' default identifiers match attentions, and by `fullmatch`: no module at all.
        kinds = {block.kind for block in find_blocks(pipe.transformer)}
        lite = self.outputs == "lite"
        return TaylorSeerCacheConfig(
            cache_interval=self.interval,
            disable_cache_before_step=self.warmup_steps,
            max_order=self.order,
            taylor_factors_dtype=dtype,
            cache_identifiers=None if lite else [rf"{kind}\.\d+" for kind in sorted(kinds)],
            use_lite_mode=lite,
        )
