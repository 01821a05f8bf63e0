"""TeaCache: no package of the ecosystem has it for video models, so this is the published rule."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from diffusers.hooks import HookRegistry, ModelHook

from foresight.blocks import find_blocks
from foresight.config import GenerationConfig, UserError
from foresight.hooks import root_hook
from foresight.peers.base import PeerPolicy
from foresight.peers.calibration import calibrated_once
from foresight.peers.session import PeerSession

_HOOK = "foresight_teacache"
_MODELS = ("LatteTransformer3DModel", "WanTransformer3DModel")
_DEGREE = 4


@dataclasses.dataclass(frozen=True)
class TeaCachePolicy(PeerPolicy):
    """Reuse the whole stack's residual until the accumulated, rescaled change of an input is large.

    Liu et al. 2024, arXiv 2411.19108. The change is the relative L1 distance of the indicator to
    the step before; a polynomial of degree 4 turns it into an estimate of the output's change. Its
    coefficients come, as the authors fit them, from generations of the same model: here one, with
    the first prompt asked for and seed 0, made once and not timed. Estimates below 0 count as 0.

    Attributes:
        threshold: Of the accumulated change.
        indicator: `modulation` is what modulates the blocks: on Latte the first block's modulated
            input, with the first and last step computed; on Wan the projected time embedding, with
            the first five steps computed (the authors' `use_ret_steps`). `time`, on Wan only, is
            the time embedding itself, with the first and last step computed.
    """

    threshold: float = 0.1
    indicator: str = "modulation"
    name = "teacache"

    def __post_init__(self) -> None:
        if self.threshold < 0:
            raise UserError(f"teacache: `threshold` must be at least 0, not {self.threshold}")
        if self.indicator not in ("modulation", "time"):
            raise UserError(
                f'teacache: `indicator` must be "modulation" or "time", not {self.indicator!r}'
            )

    @property
    def setting(self) -> str:
        return f"threshold={self.threshold:g},indicator={self.indicator}"

    def inert(self) -> "TeaCachePolicy":
        return dataclasses.replace(self, threshold=0)

    @classmethod
    def sweep(cls) -> list[PeerPolicy]:
        thresholds = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6)
        return [cls(t, kind) for kind in ("modulation", "time") for t in thresholds]

    def unfit(self, pipe: Any) -> str | None:
        kind = type(pipe.transformer).__name__
        if kind not in _MODELS:
            return f"where its indicator is found is known for {' and '.join(_MODELS)} only"
        if self.indicator == "time" and "Latte" in kind:
            return 'on Latte its `indicator` can only be "modulation"'
        return super().unfit(pipe)

    def prepared(
        self, pipe: Any, config: GenerationConfig, run: Callable[[], Any]
    ) -> "CalibratedTeaCache":
        def calibrate() -> tuple[float, ...]:
            calibration = CalibratedTeaCache(0, self.indicator, (0.0,))
            state = None

            def note(_: Any, __: Any, output: Any) -> None:
                nonlocal state
                state = calibration.state(pipe)
                state.note_output(output[0])

            session = PeerSession(pipe, calibration).enable()
            handle = pipe.transformer.register_forward_hook(note)
            try:
                run()
            finally:
                handle.remove()
                session.disable()
            return state.fit() if state is not None else ()

        self.check(pipe)
        numbers = calibrated_once(pipe, config, f"teacache {self.indicator}", calibrate)
        return CalibratedTeaCache(self.threshold, self.indicator, numbers)

    def restart(self, pipe: Any, num_steps: int) -> None:
        raise UserError(
            "teacache is not calibrated; call its `prepared(pipe, config, run)` and use that"
        )

    def remove(self, pipe: Any) -> None:
        for module in pipe.transformer.modules():
            registry = getattr(module, "_diffusers_hook", None)
            if registry is not None:
                registry.remove_hook(_HOOK, recurse=False)


@dataclasses.dataclass(frozen=True)
class CalibratedTeaCache(TeaCachePolicy):
    """TeaCache that knows its polynomial, highest power first."""

    coefficients: tuple[float, ...] = ()

    def restart(self, pipe: Any, num_steps: int) -> None:
        self.remove(pipe)
        transformer = pipe.transformer
        state = _State(self, transformer, num_steps)
        for index, block in enumerate(find_blocks(transformer)):
            _hook(block.module, _BlockHook(state, is_head=index == 0))
        _hook(transformer.norm_out, _EndHook(state))
        if self.indicator == "time":
            _hook(transformer.condition_embedder, _TimeHook(state))

    def state(self, pipe: Any) -> "_State":
        """Of the running generation."""
        return pipe.transformer.norm_out._diffusers_hook.get_hook(_HOOK).state


@dataclasses.dataclass
class _Branch:
    """What one CFG branch remembers."""

    step: int = 0
    indicator: torch.Tensor | None = None
    residual: torch.Tensor | None = None
    accumulated: float = 0.0
    output: torch.Tensor | None = None
    changes: list[float] = dataclasses.field(default_factory=list)
    output_changes: list[float] = dataclasses.field(default_factory=list)


class _State:
    """One generation: decides at the first block, skips at all, ends at the last norm."""

    def __init__(self, policy: CalibratedTeaCache, model: torch.nn.Module, num_steps: int) -> None:
        self._policy, self._model = policy, model
        self._is_wan = type(model).__name__.startswith("Wan")
        modulated_wan = self._is_wan and policy.indicator == "modulation"
        self._first, self._last = (5, num_steps) if modulated_wan else (1, num_steps - 1)
        self.branches: dict[str, _Branch] = {}
        self.skips = False
        self.time: torch.Tensor | None = None
        self._stream: torch.Tensor | None = None
        self._branch = _Branch()

    def decide(self, block: torch.nn.Module, args: tuple) -> None:
        """Whether this forward pass skips its blocks; called with what the first one is given."""
        hook = root_hook(self._model)
        name = str(None if hook is None else hook.branch)
        branch = self._branch = self.branches.setdefault(name, _Branch())
        self._stream = args[0]
        indicator = self._indicator(block, args)
        change = 0.0
        if branch.indicator is not None:
            change = _relative_change(indicator, branch.indicator)
            branch.changes.append(change)
        branch.indicator = indicator
        estimate = max(0.0, float(np.polyval(self._policy.coefficients, change)))
        branch.accumulated += estimate
        self.skips = (
            self._first <= branch.step < self._last and branch.accumulated < self._policy.threshold
        )
        if not self.skips:
            branch.accumulated = 0.0
        branch.step += 1

    def end(self, stream: torch.Tensor) -> torch.Tensor:
        """What leaves the blocks, given what came through them."""
        branch, before = self._branch, self._stream
        assert before is not None
        if self.skips:
            assert branch.residual is not None
            return before + branch.residual
        branch.residual = stream - before
        return stream

    def _indicator(self, block: torch.nn.Module, args: tuple) -> torch.Tensor:
        if self._is_wan:
            return args[2] if self.time is None else self.time
        stream, time = args[0], args[4]
        modulation = block.scale_shift_table[None] + time.reshape(len(stream), 6, -1)
        return block.norm1(stream) * (1 + modulation[:, 1:2]) + modulation[:, :1]

    def note_output(self, output: torch.Tensor) -> None:
        """For calibration: how far the model's output moved."""
        branch = self._branch
        if branch.output is not None:
            branch.output_changes.append(_relative_change(output, branch.output))
        branch.output = output

    def fit(self) -> tuple[float, ...]:
        """The polynomial from changes of the indicator to changes of the output."""
        changes = [c for branch in self.branches.values() for c in branch.changes]
        outputs = [c for branch in self.branches.values() for c in branch.output_changes]
        degree = min(_DEGREE, len(set(changes)) - 1)
        return tuple(np.polyfit(changes, outputs, degree)) if degree >= 0 else (0.0,)


class _BlockHook(ModelHook):
    def __init__(self, state: _State, is_head: bool) -> None:
        super().__init__()
        self.state, self._is_head = state, is_head

    def new_forward(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        if self._is_head:
            self.state.decide(module, args)
        forward: Any = self.fn_ref.original_forward
        return args[0] if self.state.skips else forward(*args, **kwargs)


class _EndHook(ModelHook):
    def __init__(self, state: _State) -> None:
        super().__init__()
        self.state = state

    def pre_forward(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> tuple[tuple, dict]:
        return (self.state.end(args[0]), *args[1:]), kwargs


class _TimeHook(ModelHook):
    def __init__(self, state: _State) -> None:
        super().__init__()
        self.state = state

    def post_forward(self, module: torch.nn.Module, output: Any) -> Any:
        self.state.time = output[0]
        return output


def _hook(module: torch.nn.Module, hook: ModelHook) -> None:
    HookRegistry.check_if_exists_or_initialize(module).register_hook(hook, _HOOK)


def _relative_change(now: torch.Tensor, before: torch.Tensor) -> float:
    return float((now - before).abs().mean() / before.abs().mean())
