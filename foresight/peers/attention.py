"""Caches of attention outputs that diffusers ships: Pyramid Attention Broadcast and FasterCache."""

import dataclasses
import logging
from typing import Any

import torch
from diffusers import FasterCacheConfig, PyramidAttentionBroadcastConfig

from foresight.blocks import find_blocks
from foresight.config import UserError
from foresight.peers.base import DiffusersCache, NotApplicableError, PeerPolicy

# diffusers searches for its default identifiers anywhere in a name: "transformer_blocks" is found
# in "temporal_transformer_blocks", which then follow the spatial blocks' range.
_SPATIAL = (r"^blocks\.", r"^transformer_blocks\.", r"^single_transformer_blocks\.")
_TEMPORAL = (r"^temporal_transformer_blocks\.",)
_FORMATS = {
    "LatteTransformer3DModel": "BCFHW",
    "CogVideoXTransformer3DModel": "BFCHW",
}


class AttentionCache(DiffusersCache):
    """A cache inside blocks: what it skips is counted in attention and feed-forward layers."""

    fused_only = True

    def units(self, pipe: Any) -> list[tuple[str, torch.nn.Module]]:
        return [
            (f"{block.name}.{name}", part)
            for block in find_blocks(pipe.transformer)
            for name, part in block.module.named_children()
            if part is not None and name.startswith(("attn", "ff"))
        ]


@dataclasses.dataclass(frozen=True)
class PyramidPolicy(AttentionCache):
    """Reuse each attention's output for a fixed number of steps, by its kind.

    Zhao et al. 2024, arXiv 2408.12588, without the broadcast of feed-forward layers, which
    diffusers does not offer.

    Attributes:
        spatial, temporal, cross: An attention of this kind is computed every so many steps.
        start, end: Timesteps between which attentions are reused.
    """

    spatial: int = 2
    temporal: int = 4
    cross: int = 6
    start: int = 800
    end: int = 100
    name = "pab"

    def __post_init__(self) -> None:
        if min(self.spatial, self.temporal, self.cross) < 1:
            raise UserError(
                "pab: `spatial`, `temporal` and `cross` must be at least 1, "
                f"not {self.spatial}, {self.temporal} and {self.cross}"
            )

    @property
    def setting(self) -> str:
        ranges = f"spatial={self.spatial},temporal={self.temporal},cross={self.cross}"
        return f"{ranges},start={self.start},end={self.end}"

    def inert(self) -> "PyramidPolicy":
        return dataclasses.replace(self, spatial=1, temporal=1, cross=1)

    @classmethod
    def sweep(cls) -> list[PeerPolicy]:
        ranges = ((2, 3, 6), (2, 4, 6), (3, 5, 7), (5, 7, 9))
        timesteps = ((800, 100), (950, 50))
        return [cls(*r, start=first, end=last) for first, last in timesteps for r in ranges]

    def cache_config(self, pipe: Any, num_steps: int) -> PyramidAttentionBroadcastConfig:
        timesteps = (self.end, self.start)
        return PyramidAttentionBroadcastConfig(
            spatial_attention_block_skip_range=self.spatial,
            temporal_attention_block_skip_range=self.temporal,
            cross_attention_block_skip_range=self.cross,
            spatial_attention_timestep_skip_range=timesteps,
            temporal_attention_timestep_skip_range=timesteps,
            cross_attention_timestep_skip_range=timesteps,
            spatial_attention_block_identifiers=_SPATIAL,
            temporal_attention_block_identifiers=_TEMPORAL,
            cross_attention_block_identifiers=_SPATIAL,
            current_timestep_callback=lambda: pipe.current_timestep,
        )


@dataclasses.dataclass(frozen=True)
class FasterCachePolicy(AttentionCache):
    """Estimate the unconditional branch from the conditional one, and attention from its last two.

    Lv et al. 2024, arXiv 2410.19355.

    Attributes:
        uncond: The unconditional branch is computed every so many steps.
        attention: In the steps between, attentions are computed every so many steps.
        start: Timestep from which on both happen (diffusers: 641 and 681).
    """

    uncond: int = 5
    attention: int = 2
    start: int = 681
    name = "fastercache"

    def __post_init__(self) -> None:
        if min(self.uncond, self.attention) < 1:
            raise UserError(
                "fastercache: `uncond` and `attention` must be at least 1, "
                f"not {self.uncond} and {self.attention}"
            )

    @property
    def setting(self) -> str:
        return f"uncond={self.uncond},attention={self.attention},start={self.start}"

    def unfit(self, pipe: Any) -> str | None:
        kind = type(pipe.transformer).__name__
        if kind not in _FORMATS:
            known = " and ".join(_FORMATS)
            return f"its layout of latents is known for {known} only"
        return super().unfit(pipe)

    def inert(self) -> "FasterCachePolicy":
        return dataclasses.replace(self, uncond=1)

    @classmethod
    def sweep(cls) -> list[PeerPolicy]:
        settings = ((2, 2, 681), (5, 2, 681), (5, 2, 850), (5, 3, 850), (5, 5, 950), (10, 10, 950))
        return [cls(*setting) for setting in settings]

    def restart(self, pipe: Any, num_steps: int) -> None:
        if getattr(pipe, "guidance_scale", 2.0) <= 1:
            reason = "without guidance there is no unconditional branch to leave out"
            raise NotApplicableError(self.name, pipe, reason)
        logger = logging.getLogger("diffusers.hooks.faster_cache")
        level = logger.level
        logger.setLevel(logging.ERROR)  # it warns at every generation that it is experimental
        try:
            super().restart(pipe, num_steps)
        finally:
            logger.setLevel(level)

    def cache_config(self, pipe: Any, num_steps: int) -> FasterCacheConfig:
        timesteps = (-1, self.start)
        return FasterCacheConfig(
            spatial_attention_block_skip_range=self.attention,
            temporal_attention_block_skip_range=self.attention,
            spatial_attention_timestep_skip_range=timesteps,
            temporal_attention_timestep_skip_range=timesteps,
            unconditional_batch_skip_range=self.uncond,
            unconditional_batch_timestep_skip_range=timesteps,
            attention_weight_callback=lambda _: 0.5,
            tensor_format=_FORMATS[type(pipe.transformer).__name__],
            current_timestep_callback=lambda: pipe.current_timestep,
        )
