"""Where a generation is: start, step and CFG branch, from calls alone; never reads the device."""

import functools
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch


class Clock:
    """Counts the calls of a scheduler's `set_timesteps` and `step`.

    A solver that evaluates the model twice a step (Heun) calls `step` twice and has as many
    timesteps: to the clock, every evaluation is a step.

    Attributes:
        step: Index of the current denoising step.
        call: Forward passes of the transformer so far in this step; tells CFG branches apart where
            they are evaluated one after the other and the pipeline does not name them.
        sample: What the latest `step` returned: after the loop, the final latents.
        started, finished: `time.perf_counter()` at the first and after the latest `step`.
    """

    def __init__(self, scheduler: Any, on_start: Callable[[], None]) -> None:
        self.scheduler, self._on_start = scheduler, on_start
        self._original = type(scheduler)
        self.step = self.call = 0
        self.sample: torch.Tensor | None = None
        self.started = self.finished = 0.0

    def attach(self) -> None:
        """Watch the scheduler; `detach` gives it back as it was.

        The object gets a subclass of its own class: a pipeline may copy its scheduler (LTX-2 does,
        for its sound), and the copy must step itself and not be counted.
        """
        clock, scheduler, original = self, self.scheduler, self._original

        class Watched(original):
            @functools.wraps(original.set_timesteps)
            def set_timesteps(self, *args: Any, **kwargs: Any) -> Any:
                result = original.set_timesteps(self, *args, **kwargs)
                if self is scheduler:
                    clock._start()
                return result

            @functools.wraps(original.step)
            def step(self, *args: Any, **kwargs: Any) -> Any:
                result = original.step(self, *args, **kwargs)
                if self is scheduler:
                    clock._advance(result)
                return result

        Watched.__name__, Watched.__qualname__ = original.__name__, original.__qualname__
        Watched.__module__ = original.__module__
        scheduler.__class__ = Watched

    def detach(self) -> None:
        """Stop watching."""
        self.scheduler.__class__ = self._original

    def _start(self) -> None:
        self.step = self.call = 0
        self.sample = None
        self.started = time.perf_counter()
        self._on_start()

    def _advance(self, result: Any) -> None:
        self.sample = result[0] if isinstance(result, tuple) else result.prev_sample
        # Cosmos 1 takes a step back to call `step` twice; schedulers that keep an index know.
        index = getattr(self.scheduler, "step_index", None)
        self.step = index if isinstance(index, int) else self.step + 1
        self.call = 0
        if self.step == len(self.scheduler.timesteps):
            if self.sample is not None and self.sample.device.type != "cpu":
                torch.accelerator.synchronize(self.sample.device)
            self.finished = time.perf_counter()


def noise_levels(scheduler: Any) -> tuple[np.ndarray, np.ndarray]:
    """Timesteps and sigmas (S,) of a scheduler whose timesteps are set.

    Sigma is the share of noise, `noise / (signal + noise)` in (0, 1], and comparable between
    schedulers: the sigma of flow matching; s / (1 + s) where a scheduler's sigma is noise over
    signal (Karras et al. 2022); from `alphas_cumprod` where it has none. Read once a generation,
    before the loop.
    """
    timesteps = scheduler.timesteps.detach().cpu().double().numpy()
    if not hasattr(scheduler, "sigmas"):
        kept = scheduler.alphas_cumprod.detach().cpu().double().numpy()[timesteps.astype(int)]
        signal, noise = np.sqrt(kept), np.sqrt(1 - kept)
        return timesteps, noise / (signal + noise)
    sigmas = torch.as_tensor(scheduler.sigmas).detach().cpu().double().numpy()[: len(timesteps)]
    if not _is_flow(scheduler, sigmas):
        return timesteps, sigmas / (1 + sigmas)
    inverted = scheduler.config.get("invert_sigmas", False)  # Mochi counts signal
    return timesteps, 1 - sigmas if inverted else sigmas


def _is_flow(scheduler: Any, sigmas: np.ndarray) -> bool:
    """Whether sigmas are shares of noise already; Cosmos runs a flow scheduler on Karras sigmas."""
    config = scheduler.config
    flow = (
        "FlowMatch" in type(scheduler).__name__
        or config.get("use_flow_sigmas")
        or config.get("prediction_type") == "flow_prediction"
    )
    return bool(flow) and sigmas.max() <= 1


def log_snr(sigmas: np.ndarray) -> np.ndarray:
    """Log signal-to-noise ratio of sigmas as `noise_levels` gives them, clipped to +-12."""
    inside = np.clip(sigmas, 1e-6, 1 - 1e-6)
    return np.clip(2 * np.log((1 - inside) / inside), -12, 12)
