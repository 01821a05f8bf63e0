"""Where a generation is: start, step and CFG branch, from calls alone; never reads the device."""

import functools
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch


class Clock:
    """Counts the calls of a scheduler's `set_timesteps` and `step`.

    Attributes:
        step: Index of the current denoising step.
        call: Forward passes of the transformer so far in this step; tells CFG branches apart where
            they are evaluated one after the other.
        sample: What the latest `step` returned: after the loop, the final latents.
        started, finished: `time.perf_counter()` at the first and after the latest `step`.
    """

    def __init__(self, scheduler: Any, on_start: Callable[[], None]) -> None:
        self.scheduler, self._on_start = scheduler, on_start
        self.step = self.call = 0
        self.sample: torch.Tensor | None = None
        self.started = self.finished = 0.0

    def attach(self) -> None:
        """Watch the scheduler; `detach` gives it back as it was."""
        scheduler = self.scheduler
        set_timesteps, step = scheduler.set_timesteps, scheduler.step

        @functools.wraps(set_timesteps)
        def watched_set_timesteps(*args: Any, **kwargs: Any) -> Any:
            result = set_timesteps(*args, **kwargs)
            self.step = self.call = 0
            self.sample = None
            self.started = time.perf_counter()
            self._on_start()
            return result

        @functools.wraps(step)
        def watched_step(*args: Any, **kwargs: Any) -> Any:
            result = step(*args, **kwargs)
            self.sample = result[0] if isinstance(result, tuple) else result.prev_sample
            self.step += 1
            self.call = 0
            if self.step == len(scheduler.timesteps):
                if self.sample is not None and self.sample.is_cuda:
                    torch.cuda.synchronize(self.sample.device)
                self.finished = time.perf_counter()
            return result

        scheduler.set_timesteps, scheduler.step = watched_set_timesteps, watched_step

    def detach(self) -> None:
        """Stop watching."""
        del self.scheduler.set_timesteps, self.scheduler.step


def noise_levels(scheduler: Any) -> tuple[np.ndarray, np.ndarray]:
    """Timesteps and sigmas (S,) of a scheduler whose timesteps are set.

    Sigma is the share of noise, `noise / (signal + noise)` in (0, 1): the sigma of flow matching,
    and comparable between schedulers. Read once a generation, before the loop.
    """
    timesteps = scheduler.timesteps.detach().cpu().double().numpy()
    if hasattr(scheduler, "alphas_cumprod"):
        kept = scheduler.alphas_cumprod.detach().cpu().double().numpy()[timesteps.astype(int)]
        signal, noise = np.sqrt(kept), np.sqrt(1 - kept)
        return timesteps, noise / (signal + noise)
    return timesteps, scheduler.sigmas.detach().cpu().double().numpy()[: len(timesteps)]


def log_snr(sigmas: np.ndarray) -> np.ndarray:
    """Log signal-to-noise ratio of sigmas as `noise_levels` gives them, clipped to +-12."""
    inside = np.clip(sigmas, 1e-6, 1 - 1e-6)
    return np.clip(2 * np.log((1 - inside) / inside), -12, 12)
