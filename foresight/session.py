"""One use of a policy on a pipeline: hooks in, generations run, hooks out."""

import contextlib
import copy
import functools
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from foresight.blocks import find_blocks, find_transformers
from foresight.calibration import step_times
from foresight.clock import Clock, noise_levels
from foresight.config import UserError
from foresight.geometry import branches_apart, generation_config, pooled_prompt, stream_bytes
from foresight.hooks import (
    Forward,
    RootHook,
    add_root_hook,
    refuse_other_caches,
    refuse_whole_compile,
    remove_root_hook,
    replace_forward,
    root_hook,
)
from foresight.observing import Observation
from foresight.plan import Plan
from foresight.policies.base import Controller, Generation, Policy
from foresight.policies.learned import LearnedPolicy
from foresight.record import Report
from foresight.runner import MODEL, Branch, Model, PlannedBranch, ReactiveBranch, Tap

if TYPE_CHECKING:
    from foresight.peers.session import PeerSession

__all__ = ["MODEL", "Session", "Tap", "disable", "enable", "reuse"]


class Session:
    """A policy at work on a pipeline.

    Args:
        pipe: A diffusers pipeline with a `transformer` (or two) and a `scheduler`.
        policy: What decides.
        tap: Called as `tap(step, branch, block, streams, outputs)` after every computed block, with
            the tensors that it changes before and after, and with block = `MODEL`, the latents and
            the predictions after the model; for measuring, with a policy that computes everything.
        blocks: Dotted names of the transformer's blocks, where they are not found by looking.

    Attributes:
        generation: What is known of the running or latest generation.
        plan: What was planned for it; None for policies that react.

    Raises:
        UserError: If the policy was trained for another model, or the pipeline is already in use.
    """

    def __init__(
        self,
        pipe: Any,
        policy: Policy,
        *,
        tap: Tap | None = None,
        blocks: Sequence[str] | None = None,
    ) -> None:
        policy.check(pipe)
        self.pipe, self.policy, self._tap = pipe, policy, tap
        self._models = [
            Model(module, find_blocks(module, blocks))
            for module in find_transformers(pipe).values()
        ]
        self.clock = Clock(pipe.scheduler, self._forget)
        self.generation: Generation | None = None
        self._forget()

    # Life cycle

    def enable(self) -> "Session":
        """Put the hooks in."""
        for model in self._models:
            if root_hook(model.module) is not None:
                raise UserError(
                    "a foresight policy is already enabled on this pipeline; disable it first"
                )
            refuse_other_caches(model.module)
            refuse_whole_compile(model.module)
        self.clock.attach()
        for model in self._models:
            add_root_hook(model.module, RootHook(self, functools.partial(self._run_model, model)))
            for number, block in enumerate(model.blocks):
                run = functools.partial(self._run_block, model, number)
                model.undo.append(replace_forward(block.module, run))
        return self

    def disable(self) -> None:
        """Take the hooks out; the pipeline is as it was before."""
        for model in self._models:
            remove_root_hook(model.module)
            for undo in model.undo:
                undo()
            model.undo, model.branches = [], {}
        self.clock.detach()

    def report(self) -> Report:
        """What the latest generation computed and reused, and what that took."""
        names = [] if self.generation is None else list(self.generation.block_names)
        return Report(
            actions=np.asarray(self._executed, np.uint8).reshape(-1, len(names) or 1),
            block_names=names,
            plan=self.plan,
            cache_bytes=self._peak_bytes,
            plan_seconds=self._plan_seconds,
            denoise_seconds=self.clock.finished - self.clock.started,
        )

    def calibrate(self, *args: Any, **kwargs: Any) -> None:
        """Time computed and skipped steps on this machine, for the speed-ups of a trained policy.

        Its own times are those of the machine that it was profiled on. Takes the arguments of the
        pipeline's call, at the size that will be generated, and runs it eight times; four steps do.

        Raises:
            UserError: If the policy is not a trained one, or the call takes a single step.
        """
        policy = self.policy
        if not isinstance(policy, LearnedPolicy):
            raise UserError(f"policy {policy.name} has no speed-up to calibrate")

        def denoise(policy: Policy) -> float:
            self.policy = policy
            self.pipe(*args, **kwargs)
            return self.clock.finished - self.clock.started

        try:
            times = step_times(denoise)
        finally:
            self.policy = policy
        assert self.generation is not None
        self.policy = policy.calibrated(self.generation.num_steps, *times)

    def _forget(self) -> None:
        """A generation starts: nothing of an earlier one, finished or not, may be seen by it."""
        self.generation = None
        self.plan: Plan | None = None
        self._controller: Controller | None = None
        self._executed: list[bytearray] = []
        self._branch: Branch | None = None
        self._expected = 0
        self._peak_bytes, self._plan_seconds = 0, 0.0
        for model in self._models:
            model.branches, model.programs = {}, {}

    # One forward pass of a transformer

    def _run_model(self, model: Model, forward: Forward, args: tuple, kwargs: dict) -> Any:
        step = self.clock.step
        observed = model.learn_order(forward, args, kwargs)
        if self.generation is None:
            self._begin_generation(model, observed, args, kwargs)
        if step == len(self._executed):
            self._executed.append(bytearray(len(observed.blocks)))
        branch = self._branch = self._branch_of(model, observed)
        branch.begin(step, self._executed[step])
        self._expected = 0
        try:
            return branch.model(forward, args, kwargs)
        finally:
            self._branch = None
            self.clock.call += 1
            held = sum(b.num_bytes() for m in self._models for b in m.branches.values())
            self._peak_bytes = max(self._peak_bytes, held)

    def _begin_generation(
        self, model: Model, observed: Observation, args: tuple, kwargs: dict
    ) -> None:
        started = time.perf_counter()
        refuse_other_caches(model.module)
        timesteps, sigmas = noise_levels(self.clock.scheduler)
        config = generation_config(self.pipe, model.module, args, kwargs, len(sigmas))
        hook = root_hook(model.module)
        branch = None if hook is None else hook.branch
        apart = branches_apart(args, kwargs, branch, config.guidance_scale)
        self.generation = Generation(
            config=config,
            timesteps=timesteps,
            sigmas=sigmas,
            prompt_embedding=pooled_prompt(model.module, args, kwargs),
            block_names=tuple(block.name for block in observed.blocks),
            block_kinds=tuple(block.kind for block in observed.blocks),
            scheduler=copy.deepcopy(self.clock.scheduler),
            # Where models take turns, the one that has had its turn holds what it kept.
            prediction_bytes=stream_bytes(args, kwargs) * (1 + apart) * len(self._models),
        )
        decided = self.policy.begin(self.generation)
        if isinstance(decided, Plan):
            self.plan = decided
        else:
            self._controller = decided
        self._plan_seconds = time.perf_counter() - started

    def _branch_of(self, model: Model, observed: Observation) -> Branch:
        """The branch that this forward pass belongs to; a new one has nothing to reuse yet."""
        hook = root_hook(model.module)
        key = (None if hook is None else hook.branch) or self.clock.call
        if key not in model.branches:
            assert self.generation is not None
            if len(observed.blocks) != self.generation.num_blocks:
                raise UserError(
                    f"the pipeline's transformers have {self.generation.num_blocks} and "
                    f"{len(observed.blocks)} blocks; one plan cannot serve both"
                )
            index = len(model.branches)
            if self.plan is None:
                assert self._controller is not None
                taken = sum(len(other.branches) for other in self._models)
                made = ReactiveBranch(observed.streams, taken, self._tap, self._controller)
            else:
                program = model.program(self.plan, self.clock.step)
                kind = getattr(self.clock.scheduler.config, "variance_type", None)
                variance = str(kind).startswith("learned")
                made = PlannedBranch(observed.streams, index, self._tap, program, variance=variance)
            model.branches[key] = made
        return model.branches[key]

    def _run_block(
        self, model: Model, number: int, forward: Forward, args: tuple, kwargs: dict
    ) -> Any:
        if model.watcher is not None:
            return model.watcher.run(model.blocks[number].name, forward, *args, **kwargs)
        branch = self._branch
        position = model.positions[number] if model.positions else None
        if branch is None or position is None:
            return forward(*args, **kwargs)
        if position != self._expected:
            raise UserError(
                f"block {model.blocks[number].name} ran in another order than when the model was "
                "first observed; its blocks cannot be told apart"
            )
        self._expected += 1
        return branch.block(position, forward, args, kwargs)


@contextlib.contextmanager
def reuse(
    pipe: Any,
    policy: Any,
    *,
    speedup: float | None = None,
    quality: float | None = None,
    max_cache_bytes: int | None = None,
    tap: Tap | None = None,
    blocks: Sequence[str] | None = None,
) -> "Iterator[Session | PeerSession]":
    """Use a policy on a pipeline for the length of a `with` block.

    Args:
        pipe: A diffusers text-to-video pipeline.
        policy: A `Policy`, or what `load_policy` takes.
        speedup: Wanted denoising speed-up over the uncached run, for trained policies.
        quality: Wanted PSNR against the uncached video instead, in dB, to be reached by nine
            generations of ten; other shares by `policy.reaching`.
        max_cache_bytes: The most to keep on the device from step to step, for trained policies and
            one prompt at a time. Passes beside the CFG branches (LTX-2) come on top.
        tap: See `Session`.
        blocks: See `Session`.
    """
    wanted = {"speedup": speedup, "quality": quality, "max_cache_bytes": max_cache_bytes}
    session = enable(pipe, policy, **wanted, tap=tap, blocks=blocks)
    try:
        yield session
    finally:
        disable(pipe)


def enable(
    pipe: Any,
    policy: Any,
    *,
    speedup: float | None = None,
    quality: float | None = None,
    max_cache_bytes: int | None = None,
    tap: Tap | None = None,
    blocks: Sequence[str] | None = None,
) -> "Session | PeerSession":
    """Like `reuse`, until `disable(pipe)`."""
    from foresight.peers import PeerPolicy
    from foresight.peers.session import PeerSession
    from foresight.policies import load_policy

    chosen = policy if isinstance(policy, Policy) else load_policy(policy)
    if speedup is not None and quality is not None:
        raise UserError("give a speed-up or a quality, not both")
    if speedup is not None:
        chosen = chosen.at(speedup)
    if quality is not None:
        chosen = chosen.reaching(quality)
    if max_cache_bytes is not None:
        chosen = chosen.within(max_cache_bytes)
    if isinstance(chosen, PeerPolicy):
        return PeerSession(pipe, chosen).enable()
    return Session(pipe, chosen, tap=tap, blocks=blocks).enable()


def disable(pipe: Any) -> None:
    """Give the pipeline back as it was before `enable`.

    Raises:
        UserError: If nothing is enabled on it.
    """
    hooks = [root_hook(module) for module in find_transformers(pipe).values()]
    if not hooks or hooks[0] is None:
        raise UserError("no foresight policy is enabled on this pipeline")
    hooks[0].session.disable()
