"""One use of a policy on a pipeline: hooks in, generations run, hooks out.

The hot path is `Session._run_planned`: a table look-up per block, then compute, add a residual, or
nothing. No scalar is read from the device and no branch depends on data.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from diffusers.hooks import HookRegistry, ModelHook

from foresight.blocks import Block, find_blocks, stream_of
from foresight.clock import Clock, noise_levels
from foresight.config import UserError
from foresight.geometry import generation_config, pooled_prompt
from foresight.plan import COMPUTE, REUSE, Operation, Plan, Row, compile_output_plan, compile_plan
from foresight.policies.base import Generation, Policy
from foresight.record import Report

_ROOT_HOOK = "foresight_session"
_BLOCK_HOOK = "foresight_block"
MODEL = -1
Tap = Callable[[int, int, int, torch.Tensor, torch.Tensor], None]


class _RootHook(ModelHook):
    """Tells the session that a forward pass of the transformer begins and ends."""

    def __init__(self, session: "Session") -> None:
        super().__init__()
        self.session = session

    def pre_forward(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> tuple[tuple, dict]:
        self.session._begin_forward(module, args, kwargs)
        return args, kwargs

    def new_forward(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        forward: Any = self.fn_ref.original_forward
        return self.session._run_model(forward, args, kwargs)

    def post_forward(self, module: torch.nn.Module, output: Any) -> Any:
        self.session._end_forward()
        return output


class _BlockHook(ModelHook):
    """Stands in for a block's forward; keeps no state of its own."""

    def __init__(self, session: "Session", index: int) -> None:
        super().__init__()
        self.session, self.index = session, index

    def new_forward(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        forward: Any = self.fn_ref.original_forward
        return self.session._run(self.index, forward, args, kwargs)


class _Cache:
    """What one CFG branch keeps between steps: a residual per slot and the one before it.

    `output` is the model's latest output object, kept for its form.
    """

    def __init__(self) -> None:
        self.output: Any = None
        self.latest: dict[int, torch.Tensor] = {}
        self.previous: dict[int, torch.Tensor] = {}

    def num_bytes(self) -> int:
        tensors = (*self.latest.values(), *self.previous.values())
        return sum(tensor.nbytes for tensor in tensors)


class Session:
    """A policy at work on a pipeline.

    Args:
        pipe: A diffusers pipeline with a `transformer` and a `scheduler`.
        policy: What decides.
        tap: Called as `tap(step, branch, block, stream, output)` after every computed block, and
            with block = `MODEL` and the latents as stream after the model; for measuring, with a
            policy that computes everything.

    Raises:
        UserError: If the policy was trained for another model, or the pipeline is already in use.
    """

    def __init__(self, pipe: Any, policy: Policy, *, tap: Tap | None = None) -> None:
        policy.check(pipe)
        self.pipe, self.policy, self._tap = pipe, policy, tap
        self.blocks: list[Block] = find_blocks(pipe.transformer)
        self.clock = Clock(pipe.scheduler, self._forget)
        self.generation: Generation | None = None
        self.plan: Plan | None = None
        self._forget()

    # Life cycle

    def enable(self) -> "Session":
        """Put the hooks in."""
        registry = HookRegistry.check_if_exists_or_initialize(self.pipe.transformer)
        if registry.get_hook(_ROOT_HOOK) is not None:
            raise UserError(
                "a foresight policy is already enabled on this pipeline; disable it first"
            )
        if getattr(self.pipe.transformer, "is_cache_enabled", False):
            raise UserError(
                "another cache is enabled on this transformer; call disable_cache() first"
            )
        self.clock.attach()
        registry.register_hook(_RootHook(self), _ROOT_HOOK)
        for block in self.blocks:
            hooks = HookRegistry.check_if_exists_or_initialize(block.module)
            hooks.register_hook(_BlockHook(self, block.index), _BLOCK_HOOK)
        return self

    def disable(self) -> None:
        """Take the hooks out; the pipeline is as it was before."""
        HookRegistry.check_if_exists_or_initialize(self.pipe.transformer).remove_hook(
            _ROOT_HOOK, recurse=False
        )
        for block in self.blocks:
            block.module._diffusers_hook.remove_hook(_BLOCK_HOOK, recurse=False)
        self.clock.detach()
        self._caches = []

    def report(self) -> Report:
        """What the latest generation computed and reused, and what that took."""
        return Report(
            actions=np.asarray(self._executed, np.uint8).reshape(-1, len(self.blocks)),
            block_names=[block.name for block in self.blocks],
            plan=self.plan,
            cache_bytes=self._peak_bytes,
            plan_seconds=self._plan_seconds,
            denoise_seconds=self.clock.finished - self.clock.started,
        )

    def _forget(self) -> None:
        """A generation starts: nothing of an earlier one, finished or not, may be seen by it."""
        self.generation = self.plan = None
        self._rows: list[Row] | None = None
        self._model_row: Row | None = None
        self._caches: list[_Cache] = []
        self._executed: list[bytearray] = []
        self._order_seen: list[int] = []
        self._peak_bytes = 0
        self._plan_seconds = 0.0

    # One forward pass of the transformer

    def _begin_forward(self, module: torch.nn.Module, args: tuple, kwargs: dict) -> None:
        step, self._branch = self.clock.step, self.clock.call
        if self.generation is None:
            self._begin_generation(module, args, kwargs)
        if self._branch == len(self._caches):
            self._caches.append(_Cache())
        if step == len(self._executed):
            self._executed.append(bytearray(len(self.blocks)))
        self._cache = self._caches[self._branch]
        self._step_executed = self._executed[step]
        if self._rows is not None:
            self._row = self._rows[step]

    def _begin_generation(self, module: torch.nn.Module, args: tuple, kwargs: dict) -> None:
        started = time.perf_counter()
        timesteps, sigmas = noise_levels(self.clock.scheduler)
        self.generation = Generation(
            config=generation_config(self.pipe, stream_of(args, kwargs), len(sigmas)),
            timesteps=timesteps,
            sigmas=sigmas,
            prompt_embedding=pooled_prompt(module, args, kwargs),
            block_names=tuple(block.name for block in self.blocks),
            block_kinds=tuple(block.kind for block in self.blocks),
        )
        decided = self.policy.begin(self.generation)
        if isinstance(decided, Plan):
            self.plan = decided
            kinds = [block.kind for block in self.blocks]
            if decided.at_output:
                self._rows = [[None] * len(kinds)] * self.generation.num_steps
                self._model_row = compile_output_plan(decided)
            else:
                self._rows = compile_plan(decided, kinds)
            self._run = self._run_planned
        else:
            self._rows, self._controller = None, decided
            self._run = self._run_reactive
        self._plan_seconds = time.perf_counter() - started

    def _end_forward(self) -> None:
        self._peak_bytes = max(self._peak_bytes, sum(cache.num_bytes() for cache in self._caches))
        self.clock.call += 1
        if len(self._executed) == 1 and self._branch == 0 and self._order_seen:
            expected = [block.index for block in self.blocks]
            if self._order_seen != expected:
                names = [self.blocks[index].name for index in self._order_seen]
                raise UserError(f"the blocks ran in another order than expected: {names}")
            self._order_seen = []

    # The whole model, for plans at the output

    def _run_model(self, forward: Callable, args: tuple, kwargs: dict) -> Any:
        operation = None if self._model_row is None else self._model_row[self.clock.step]
        cache = self._cache
        if operation is None or operation.action == COMPUTE:
            output = forward(*args, **kwargs)
            if operation is not None:
                self._store(operation, _sample_of(output).clone())
                cache.output = output
            if self._tap is not None:
                step, stream = self.clock.step, stream_of(args, kwargs)
                self._tap(step, self._branch, MODEL, stream, _sample_of(output))
            return output
        self._step_executed[:] = bytes([operation.action]) * len(self.blocks)
        return _with_sample(cache.output, self._read(operation))

    def _store(self, operation: Operation, value: torch.Tensor) -> None:
        cache, slot = self._cache, operation.slot
        if operation.shift:
            cache.previous[slot] = cache.latest[slot]
        else:
            cache.previous.pop(slot, None)
        cache.latest[slot] = value

    def _read(self, operation: Operation) -> torch.Tensor:
        latest = self._cache.latest[operation.slot]
        if operation.action == REUSE:
            return latest
        previous = self._cache.previous[operation.slot]
        return torch.lerp(previous, latest, 1 + operation.coefficient)

    # One block: the hot path

    def _run_planned(
        self, index: int, forward: Callable, args: tuple, kwargs: dict
    ) -> torch.Tensor:
        operation = self._row[index]
        if operation is None or operation.action == COMPUTE:
            output = self._compute(index, forward, args, kwargs)
            if operation is not None:
                cache, slot, stream = self._cache, operation.slot, stream_of(args, kwargs)
                if not operation.first:
                    cache.latest[slot].add_(output).sub_(stream)
                else:
                    self._store(operation, output - stream)
            return output
        self._step_executed[index] = operation.action
        stream = stream_of(args, kwargs)
        if not operation.last:
            return stream
        latest = self._cache.latest[operation.slot]
        if operation.action == REUSE:
            return stream + latest
        beta = operation.coefficient
        previous = self._cache.previous[operation.slot]
        return torch.add(stream, latest, alpha=1 + beta).add_(previous, alpha=-beta)

    def _run_reactive(
        self, index: int, forward: Callable, args: tuple, kwargs: dict
    ) -> torch.Tensor:
        controller, cache = self._controller, self._cache.latest
        step, branch, stream = self.clock.step, self._branch, stream_of(args, kwargs)
        keeps_output = controller.cached == "output"
        if controller.reuses(step, branch, index):
            self._step_executed[index] = REUSE
            return cache[index] if keeps_output else stream + cache[index]
        output = self._compute(index, forward, args, kwargs)
        kept = output if keeps_output else output - stream
        controller.observe(step, branch, index, kept, cache.get(index))
        cache[index] = kept
        return output

    def _compute(self, index: int, forward: Callable, args: tuple, kwargs: dict) -> torch.Tensor:
        output = forward(*args, **kwargs)
        if self.clock.step == 0:
            self._check_first(index, output)
        if self._tap is not None:
            self._tap(self.clock.step, self._branch, index, stream_of(args, kwargs), output)
        return output

    def _check_first(self, index: int, output: Any) -> None:
        if not isinstance(output, torch.Tensor):
            name = self.blocks[index].name
            raise UserError(
                f"block {name} returns {type(output).__name__}; only tensors can be reused"
            )
        if self._branch == 0:
            self._order_seen.append(index)


def _sample_of(output: Any) -> torch.Tensor:
    """The prediction in what a transformer returned: a tuple, or an output with a first field."""
    return output[0]


def _with_sample(output: Any, sample: torch.Tensor) -> Any:
    """The same form of output with another prediction."""
    if isinstance(output, tuple):
        return (sample, *output[1:])
    first = next(iter(output))
    return type(output)(**{**output, first: sample})


@contextlib.contextmanager
def reuse(
    pipe: Any, policy: Any, *, speedup: float | None = None, tap: Tap | None = None
) -> Iterator[Session]:
    """Use a policy on a pipeline for the length of a `with` block.

    Args:
        pipe: A diffusers text-to-video pipeline.
        policy: A `Policy`, or what `load_policy` takes.
        speedup: Wanted denoising speed-up over the uncached run, for planned policies.
        tap: See `Session`.
    """
    session = enable(pipe, policy, speedup=speedup, tap=tap)
    try:
        yield session
    finally:
        disable(pipe)


def enable(
    pipe: Any, policy: Any, *, speedup: float | None = None, tap: Tap | None = None
) -> Session:
    """Like `reuse`, until `disable(pipe)`."""
    from foresight.policies import load_policy

    chosen = policy if isinstance(policy, Policy) else load_policy(policy)
    if speedup is not None:
        chosen = chosen.at(speedup)
    return Session(pipe, chosen, tap=tap).enable()


def disable(pipe: Any) -> None:
    """Give the pipeline back as it was before `enable`.

    Raises:
        UserError: If nothing is enabled on it.
    """
    registry = getattr(pipe.transformer, "_diffusers_hook", None)
    hook = registry.get_hook(_ROOT_HOOK) if registry is not None else None
    if hook is None:
        raise UserError("no foresight policy is enabled on this pipeline")
    hook.session.disable()
