"""First Block Cache, as diffusers ships it."""

import dataclasses
from typing import Any

from diffusers import FirstBlockCacheConfig

from foresight.config import UserError
from foresight.peers.base import DiffusersCache, PeerPolicy, one_stack_misfit


@dataclasses.dataclass(frozen=True)
class FirstBlockPolicy(DiffusersCache):
    """Reuse the residual of all other blocks while the first block's residual hardly changes.

    Chengzeyi's ParaAttention (2024). The relative mean absolute change of the first block's
    residual since the last computed step is held against `threshold`, for each CFG branch.
    """

    threshold: float = 0.1
    name = "fbcache"

    def __post_init__(self) -> None:
        if self.threshold < 0:
            raise UserError(f"fbcache: `threshold` must be at least 0, not {self.threshold}")

    @property
    def setting(self) -> str:
        return f"threshold={self.threshold:g}"

    def unfit(self, pipe: Any) -> str | None:
        return super().unfit(pipe) or one_stack_misfit(pipe)

    def inert(self) -> "FirstBlockPolicy":
        return dataclasses.replace(self, threshold=0)

    @classmethod
    def sweep(cls) -> list[PeerPolicy]:
        return [cls(threshold=t) for t in (0.03, 0.06, 0.1, 0.15, 0.2, 0.3, 0.5)]

    def cache_config(self, pipe: Any, num_steps: int) -> FirstBlockCacheConfig:
        return FirstBlockCacheConfig(threshold=self.threshold)
