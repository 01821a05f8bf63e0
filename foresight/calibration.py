"""What computed and skipped steps take on this machine."""

from collections.abc import Callable

import numpy as np

from foresight.policies.base import Policy
from foresight.policies.fixed import NonePolicy, OneStepPolicy

PAIRS = 3


def step_times(denoise: Callable[[Policy], float]) -> tuple[float, float]:
    """Median seconds of a generation with all steps computed, and with only the first.

    Args:
        denoise: Runs one generation under a policy and returns its denoising time.
    """
    policies = NonePolicy(), OneStepPolicy()
    pairs = [[denoise(policy) for policy in policies] for _ in range(PAIRS + 1)]
    full, skipped = np.median(pairs[1:], axis=0)  # the first pair warms up
    return float(full), float(skipped)
