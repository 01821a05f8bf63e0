"""The time that a model's measurements may take, and what was left out for it or failed."""

import contextlib
import gc
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

ROUNDS_SHARE = 0.65  # of the budget is the most that timed rounds are begun in
T = TypeVar("T")


class Budget:
    """Seconds to spend from now on.

    Attributes:
        seconds: At the start.
        left_out: What was not measured, and why.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.left_out: dict[str, str] = {}
        self._started, self._round = time.monotonic(), 0.0

    def left(self) -> float:
        """Seconds left; negative when overdrawn."""
        return self.seconds - (time.monotonic() - self._started)

    @contextlib.contextmanager
    def round(self) -> Iterator[None]:
        """Notes how long a round takes."""
        started = time.monotonic()
        yield
        self._round = time.monotonic() - started

    def allows_another_round(self) -> bool:
        """Whether one as long as the last would leave time for what comes after the rounds."""
        return self.left() - self._round >= (1 - ROUNDS_SHARE) * self.seconds

    def attempt(self, what: str, action: Callable[[], T], *, needs: float = 0.0) -> T | None:
        """Do it if there is time; a failure is noted and does not end the other measurements.

        Args:
            what: Its name among what was left out.
            action: Returns what is wanted.
            needs: Seconds without which it is not begun.
        """
        if self.left() <= needs:
            self.left_out[what] = "no time was left"
            return None
        try:
            return action()
        except Exception as error:
            self.left_out[what] = reason_of(error)
        # Only here, for the error's traceback held what had filled the memory.
        release_memory()
        return None


def reason_of(error: Exception) -> str:
    """An error in one line."""
    if isinstance(error, torch.OutOfMemoryError):
        return "out of memory"
    lines = str(error).strip().splitlines() or ["no message"]
    return f"{type(error).__name__}: {lines[0]}"


def release_memory() -> None:
    """Give what nothing refers to any more back to the GPU, where there is one."""
    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()
