"""One use of a peer on a pipeline: its cache in, generations run and counted, its cache out."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from diffusers.hooks import HookRegistry

from foresight.clock import Clock, noise_levels
from foresight.config import UserError
from foresight.geometry import generation_config, pooled_prompt
from foresight.hooks import ROOT_HOOK, RootHook, refuse_other_caches, root_hook
from foresight.peers.base import NotApplicableError, PeerPolicy, cache_contexts
from foresight.peers.counting import CallCounter, Restorer, held_bytes
from foresight.plan import COMPUTE
from foresight.policies.base import Generation
from foresight.record import Report


@dataclasses.dataclass(frozen=True)
class PeerReport(Report):
    """What a peer computed, counted from outside.

    Attributes:
        shares: (S, N) of each unit's rows that were computed; between 0 and 1 where one of two
            CFG branches was.
    """

    shares: np.ndarray

    @property
    def compute_fraction(self) -> float:
        """Share of the units' rows that were computed."""
        return float(self.shares.mean())


class PeerSession:
    """A peer at work on a pipeline; to its callers what `foresight.session.Session` is.

    Args:
        pipe: A diffusers pipeline with a `transformer` and a `scheduler`.
        policy: The peer, `prepared` if it needs calibration.

    Raises:
        NotApplicableError: If the peer is wrong on this pipeline.
    """

    plan = None  # a peer has none

    def __init__(self, pipe: Any, policy: PeerPolicy) -> None:
        policy.check(pipe)
        self.pipe, self.policy = pipe, policy
        self.clock = Clock(pipe.scheduler, self._start)
        self.generation: Generation | None = None
        self._counter = CallCounter(policy.units(pipe))
        self._names_branches = not cache_contexts(pipe)
        self._bytes = self._calls = 0

    def enable(self) -> "PeerSession":
        """Put the peer in."""
        transformer = self.pipe.transformer
        if root_hook(transformer) is not None:
            raise UserError(
                "a foresight policy is already enabled on this pipeline; disable it first"
            )
        refuse_other_caches(transformer)
        self._restorer = Restorer(transformer)
        self._counter.attach()
        try:
            self.policy.install(self.pipe)
        except Exception:
            self._take_out()
            raise
        hook = RootHook(self, self._run_model)
        HookRegistry.check_if_exists_or_initialize(transformer).register_hook(hook, ROOT_HOOK)
        self.clock.attach()
        return self

    def disable(self) -> None:
        """Take the peer out; the pipeline is as it was before."""
        self.clock.detach()
        registry = self.pipe.transformer._diffusers_hook
        registry.remove_hook(ROOT_HOOK, recurse=False)
        self._take_out()
        registry.invalidate_child_registries_cache()  # it lists registries that are gone

    def _take_out(self) -> None:
        self.policy.remove(self.pipe)
        self._restorer.restore()

    def report(self) -> PeerReport:
        """What the latest generation computed, and what that took."""
        shares = self._counter.shares()
        return PeerReport(
            actions=np.where(shares > 0, COMPUTE, self.policy.skipped).astype(np.uint8),
            block_names=self._counter.names,
            plan=None,
            cache_bytes=self._bytes,
            plan_seconds=0.0,
            denoise_seconds=self.clock.finished - self.clock.started,
            shares=shares,
        )

    def _start(self) -> None:
        """A generation starts: nothing of an earlier one, finished or not, may be seen by it."""
        self.generation = None
        self._bytes = self._calls = 0
        self._counter.begin()
        self.policy.restart(self.pipe, len(self.clock.scheduler.timesteps))

    def _run_model(self, forward: Callable, args: tuple, kwargs: dict) -> Any:
        """One forward pass of the transformer."""
        if self.generation is None:
            self._note_generation(args, kwargs)
        clock = self.clock
        if clock.call == 0:
            self._counter.next_step()
            self._check_branches()
        if self._names_branches:
            with self.pipe.transformer.cache_context(f"branch {clock.call}"):
                output = forward(*args, **kwargs)
        else:
            output = forward(*args, **kwargs)
        clock.call += 1
        self._calls = clock.call
        # Some peers drop their cache with the last step: look at the one before.
        if clock.step == max(0, len(clock.scheduler.timesteps) - 2):
            self._bytes = held_bytes(self.policy.holders(self.pipe))
        return output

    def _check_branches(self) -> None:
        """Refuse, once the first step has shown how many forward passes a step has."""
        if self.clock.step != 1:
            return
        reason = self.policy.unfit_for(self.pipe, self._calls)
        if reason is not None:
            raise NotApplicableError(self.policy.name, self.pipe, reason)

    def _note_generation(self, args: tuple, kwargs: dict) -> None:
        transformer = self.pipe.transformer
        timesteps, sigmas = noise_levels(self.clock.scheduler)
        names = tuple(self._counter.names)
        self.generation = Generation(
            config=generation_config(self.pipe, transformer, args, kwargs, len(sigmas)),
            timesteps=timesteps,
            sigmas=sigmas,
            prompt_embedding=pooled_prompt(transformer, args, kwargs),
            block_names=names,
            block_kinds=names,
        )
