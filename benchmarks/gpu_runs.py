"""Generations of a measured model: their time, their memory, and where the time goes."""

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

import foresight
from foresight.clock import Clock
from foresight.config import GenerationConfig
from foresight.devices import peak_memory, reset_peak_memory
from foresight.peers import PeerPolicy
from foresight.policies.base import Policy
from foresight.record import Report
from foresight.runner import Tap

PROBE_STEPS = 2
_BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
ATTENTION = {"cuda": ("default", "flash", "cudnn", "efficient"), "cpu": ("default", "flash")}


@dataclasses.dataclass(frozen=True)
class Run:
    """One generation.

    Attributes:
        seconds: Of the denoising loop.
        latents: At its end.
        report: Of the policy's session; None for the untouched pipeline.
        peak_bytes: Most memory allocated on the GPU; None without one.
    """

    seconds: float
    latents: torch.Tensor
    report: Report | None
    peak_bytes: float | None

    def off_gpu(self) -> "Run":
        """The same without memory on the GPU, which would count in the peaks of later runs."""
        return dataclasses.replace(self, latents=self.latents.cpu())


@dataclasses.dataclass(frozen=True)
class Bench:
    """A pipeline and what it is called with.

    Attributes:
        pipe: A diffusers pipeline.
        call: Keyword arguments, all but steps, generator and output type.
        config: The same in the project's words.
    """

    pipe: Any
    call: Mapping[str, Any]
    config: GenerationConfig

    @property
    def device(self) -> torch.device:
        """Where the transformer is."""
        return next(self.pipe.transformer.parameters()).device

    @property
    def steps(self) -> int:
        """Denoising steps of a measured generation."""
        return self.config.num_inference_steps

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    @torch.no_grad()
    def run(
        self,
        policy: Policy | str | None = None,
        *,
        tap: Tap | None = None,
        steps: int | None = None,
    ) -> Run:
        """Generate latents under a policy, or with the untouched pipeline."""
        on_gpu = self.device.type == "cuda"
        self.synchronize()
        if on_gpu:
            reset_peak_memory(self.pipe)
        with self._watched(policy, tap) as (clock, report):
            self.pipe(**self._arguments(steps or self.steps, "latent"))
        assert clock.sample is not None
        peak = peak_memory(self.pipe) if on_gpu else None
        return Run(clock.finished - clock.started, clock.sample, report(), peak)

    @torch.no_grad()
    def decoding_seconds(self) -> float:
        """Time from the last step to frames on the device, after a run to warm up."""
        seconds = 0.0
        for _ in range(2):
            with self._watched(None, None) as (clock, _):
                self.pipe(**self._arguments(PROBE_STEPS, "pt"))
            self.synchronize()
            seconds = time.perf_counter() - clock.finished
        return seconds

    def prepared(self, policy: Policy) -> Policy:
        """The policy, calibrated where its authors calibrate."""
        if isinstance(policy, PeerPolicy):
            return policy.prepared(self.pipe, self.config, self.run)
        return policy

    def _arguments(self, steps: int, output_type: str) -> dict[str, Any]:
        generator = torch.Generator("cpu").manual_seed(0)
        chosen = {"num_inference_steps": steps, "output_type": output_type}
        return {**self.call, **chosen, "generator": generator}

    @contextmanager
    def _watched(
        self, policy: Policy | str | None, tap: Tap | None
    ) -> Iterator[tuple[Clock, Callable[[], Report | None]]]:
        """The clock of the generation inside, and its report; no policy is only watched."""
        if policy is None:
            clock = Clock(self.pipe.scheduler, lambda: None)
            clock.attach()
            try:
                yield clock, lambda: None
            finally:
                clock.detach()
            return
        with foresight.reuse(self.pipe, policy, tap=tap) as session:
            yield session.clock, session.report


@contextmanager
def attention(name: str) -> Iterator[None]:
    """Scaled dot-product attention by this backend where it can, else by the next."""
    if name == "default":
        yield
        return
    order = dict.fromkeys([_BACKENDS[name], *_BACKENDS.values()])
    with sdpa_kernel(list(order), set_priority=True):
        yield


def fastest_attention(bench: Bench) -> tuple[str, dict[str, float]]:
    """The backend of torch's attention with the shortest step, and seconds a step of each."""
    seconds = {}
    for name in ATTENTION[bench.device.type]:
        try:
            with attention(name):
                runs = [bench.run(steps=PROBE_STEPS).seconds for _ in range(2)]
        except RuntimeError:  # not on this device or for this model; the default works
            continue
        seconds[name] = min(runs) / PROBE_STEPS
    return min(seconds, key=seconds.__getitem__), seconds


def module_seconds(bench: Bench, modules: Mapping[str, torch.nn.Module], steps: int) -> np.ndarray:
    """What each module takes in one step of the untouched pipeline, (M,) seconds.

    On a GPU by events in its queue, so that nothing waits for anything. The median over a module's
    calls, times its calls in a step.
    """
    on_gpu = bench.device.type == "cuda"
    marks: dict[str, list[Any]] = {name: [] for name in modules}

    def marker(name: str) -> Callable[..., None]:
        def mark(*_: Any) -> None:
            if on_gpu:
                event = torch.cuda.Event(enable_timing=True)
                event.record()
                marks[name].append(event)
            else:
                marks[name].append(time.perf_counter())

        return mark

    handles = []
    try:
        for name, module in modules.items():
            handles.append(module.register_forward_pre_hook(marker(name)))
            handles.append(module.register_forward_hook(marker(name)))
        bench.run(steps=steps)
    finally:
        for handle in handles:
            handle.remove()
    bench.synchronize()
    found = []
    for name in modules:
        pairs = zip(marks[name][::2], marks[name][1::2], strict=True)
        took = [a.elapsed_time(b) / 1e3 if on_gpu else b - a for a, b in pairs]
        found.append(float(np.median(took)) * len(took) / steps)
    return np.asarray(found)


def ideal_speedup(step_seconds: float, unit_seconds: np.ndarray, shares: np.ndarray) -> float:
    """Speed-up if what is skipped cost nothing, and skipping neither.

    Args:
        step_seconds: Of an uncached step.
        unit_seconds: (N,), of what is skipped or not (blocks, or parts of them) in such a step.
        shares: (S, N) of it that was computed.
    """
    total = len(shares) * step_seconds
    saved = float(((1 - shares) * unit_seconds).sum())
    return total / (total - saved)
