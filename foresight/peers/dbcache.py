"""DBCache of the package cache-dit, with or without its TaylorSeer calibrator."""

import dataclasses
import importlib
import importlib.util
import os
from typing import Any

from foresight.config import UserError
from foresight.peers.base import PeerPolicy


@dataclasses.dataclass(frozen=True)
class DBCachePolicy(PeerPolicy):
    """Reuse or forecast the middle blocks while the first blocks' residual hardly changes.

    vipshop's cache-dit (2025), through its own adapter of the pipeline.

    Attributes:
        threshold: Bound on the relative change of the first blocks' residual.
        warmup_steps: Computed first.
        first, last: Blocks at the start and at the end that are always computed.
        taylorseer: 0 to reuse residuals as they are, or the order at which they are forecast.
    """

    threshold: float = 0.08
    warmup_steps: int = 4
    first: int = 1
    last: int = 0
    taylorseer: int = 0
    name = "cache-dit"

    def __post_init__(self) -> None:
        if self.threshold < 0 or self.warmup_steps < 1 or self.first < 1:
            raise UserError(
                "cache-dit: `threshold` must be at least 0, and `warmup_steps` and `first` at "
                f"least 1, not {self.threshold}, {self.warmup_steps} and {self.first}"
            )
        if self.last < 0 or self.taylorseer < 0:
            raise UserError(
                "cache-dit: `last` and `taylorseer` must be at least 0, "
                f"not {self.last} and {self.taylorseer}"
            )

    @property
    def setting(self) -> str:
        blocks = f"first={self.first},last={self.last},taylorseer={self.taylorseer}"
        return f"threshold={self.threshold:g},warmup_steps={self.warmup_steps},{blocks}"

    def inert(self) -> "DBCachePolicy":
        return dataclasses.replace(self, threshold=0)

    @classmethod
    def sweep(cls) -> list[PeerPolicy]:
        thresholds = (0.04, 0.08, 0.12, 0.2, 0.3, 0.5)
        return [cls(threshold=t, taylorseer=order) for order in (0, 1) for t in thresholds]

    def unfit(self, pipe: Any) -> str | None:
        if importlib.util.find_spec("cache_dit") is None:
            return "it needs the package cache-dit; pip install 'foresight-reuse[peers]'"
        if not _quiet_cache_dit().BlockAdapterRegister.is_supported(pipe):
            return "cache-dit has no adapter for it"
        return super().unfit(pipe)

    def unfit_for(self, pipe: Any, num_branches: int) -> str | None:
        expected = 2 if _quiet_cache_dit().BlockAdapterRegister.has_separate_cfg(pipe) else 1
        if num_branches == expected:
            return None
        return f"cache-dit counts on {expected} forward passes a step here, not {num_branches}"

    def install(self, pipe: Any) -> None:
        cache_dit = _quiet_cache_dit()
        calibrator = cache_dit.TaylorSeerCalibratorConfig(taylorseer_order=self.taylorseer)
        cache_dit.enable_cache(
            pipe,
            cache_config=cache_dit.DBCacheConfig(
                Fn_compute_blocks=self.first,
                Bn_compute_blocks=self.last,
                residual_diff_threshold=self.threshold,
                max_warmup_steps=self.warmup_steps,
            ),
            calibrator_config=calibrator if self.taylorseer else None,
        )

    def restart(self, pipe: Any, num_steps: int) -> None:
        """Nothing: cache-dit empties its cache whenever the pipeline is called."""

    def remove(self, pipe: Any) -> None:
        _quiet_cache_dit().disable_cache(pipe)

    def holders(self, pipe: Any) -> list[Any]:
        return [pipe._context_manager]


def _quiet_cache_dit() -> Any:
    """The package, without its messages of every enabled or disabled cache."""
    os.environ.setdefault("CACHE_DIT_LOG_LEVEL", "error")
    return importlib.import_module("cache_dit")
