"""MagCache, as diffusers ships it, calibrated as its authors do."""

import dataclasses
import statistics
from collections.abc import Callable
from typing import Any

from diffusers import MagCacheConfig
from diffusers.hooks.mag_cache import MagCacheHeadHook

from foresight.config import GenerationConfig, UserError
from foresight.peers.base import DiffusersCache, PeerPolicy, one_stack_misfit
from foresight.peers.calibration import calibrated_once
from foresight.peers.session import PeerSession


@dataclasses.dataclass(frozen=True)
class MagCachePolicy(DiffusersCache):
    """Reuse the whole stack's residual while the product of magnitude ratios stays near 1.

    Ma et al. 2025, arXiv 2506.09045. The ratios come from one calibration generation with the
    same model, configuration and scheduler, of the first prompt asked for and seed 0; it is made
    once and not timed. diffusers takes one list of ratios for all CFG branches: their mean.

    Attributes:
        threshold: Bound on the accumulated error.
        max_skips: K, most steps skipped in a row.
        retention: Share of the first steps that are always computed.
    """

    threshold: float = 0.12
    max_skips: int = 2
    retention: float = 0.2
    name = "magcache"

    def __post_init__(self) -> None:
        if self.threshold < 0 or self.max_skips < 0 or not 0 <= self.retention <= 1:
            raise UserError(
                "magcache: `threshold` and `max_skips` must be at least 0 and `retention` in "
                f"[0, 1], not {self.threshold}, {self.max_skips} and {self.retention}"
            )

    @property
    def setting(self) -> str:
        kept = "" if self.retention == 0.2 else f",retention={self.retention:g}"
        return f"threshold={self.threshold:g},max_skips={self.max_skips}{kept}"

    def unfit(self, pipe: Any) -> str | None:
        return super().unfit(pipe) or one_stack_misfit(pipe)

    def inert(self) -> "MagCachePolicy":
        return dataclasses.replace(self, max_skips=0)

    @classmethod
    def sweep(cls) -> list[PeerPolicy]:
        settings = ((0.03, 2), (0.06, 2), (0.12, 2), (0.12, 4), (0.24, 4), (0.24, 6), (0.5, 8))
        return [cls(threshold=t, max_skips=k) for t, k in settings]

    def prepared(
        self, pipe: Any, config: GenerationConfig, run: Callable[[], Any]
    ) -> "CalibratedMagCache":
        self.check(pipe)
        ratios = calibrated_once(pipe, config, "magcache", lambda: _calibrate(pipe, run))
        return CalibratedMagCache(**dataclasses.asdict(self), ratios=ratios)

    def cache_config(self, pipe: Any, num_steps: int) -> MagCacheConfig:
        raise UserError(
            "magcache is not calibrated; call its `prepared(pipe, config, run)` and use that"
        )


@dataclasses.dataclass(frozen=True)
class CalibratedMagCache(MagCachePolicy):
    """MagCache that knows its ratios, one per step."""

    ratios: tuple[float, ...] = ()

    def cache_config(self, pipe: Any, num_steps: int) -> MagCacheConfig:
        return MagCacheConfig(
            threshold=self.threshold,
            max_skip_steps=self.max_skips,
            retention_ratio=self.retention,
            num_inference_steps=num_steps,
            mag_ratios=list(self.ratios),
        )


@dataclasses.dataclass(frozen=True)
class _Calibration(MagCachePolicy):
    """Computes everything and notes the ratios."""

    def cache_config(self, pipe: Any, num_steps: int) -> MagCacheConfig:
        # One step more than there are: after the last one the hooks print and forget their ratios.
        return MagCacheConfig(calibrate=True, num_inference_steps=num_steps + 1)


def _calibrate(pipe: Any, run: Callable[[], Any]) -> tuple[float, ...]:
    """Mean over tokens of `|residual| / |residual a step earlier|`, per step."""
    branches: dict[str, list[float]] = {}
    calibration = _Calibration()

    def note(*_: Any) -> None:  # pipelines empty the hooks when they end; these lists stay
        for hook in calibration.holders(pipe):
            if isinstance(hook, MagCacheHeadHook):
                for name, state in hook.state_manager._state_cache.items():
                    branches[name] = state.calibration_ratios

    session = PeerSession(pipe, calibration).enable()
    handle = pipe.transformer.register_forward_hook(note)
    try:
        run()
    finally:
        handle.remove()
        session.disable()
    return tuple(statistics.fmean(ratios) for ratios in zip(*branches.values(), strict=True))
