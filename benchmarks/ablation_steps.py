"""Other ways to choose the steps to compute, given how many."""

from collections.abc import Callable, Iterator

import numpy as np
import torch

from foresight.policies.fixed import warmup_length
from foresight.policies.foresight import ForesightController, ForesightPolicy
from foresight.policies.multistep import coordinates

THRESHOLDS = np.geomspace(100, 0.01, 60)


def evenly_spaced(num_steps: int, count: int) -> np.ndarray:
    """From the first on: bool (S,)."""
    return np.isin(np.arange(num_steps), np.arange(count) * num_steps // count)


def warmed_up_cadence(num_steps: int, count: int) -> np.ndarray:
    """Foresight's warm-up, then evenly spaced: bool (S,); even where the budget ends before."""
    warmup = warmup_length(None, num_steps)
    left, rest = count - warmup, num_steps - warmup
    if left < 1:
        return evenly_spaced(num_steps, count)
    # The first steps after the warm-up are skipped, the last one of each period is computed.
    later = warmup + (np.arange(1, left + 1) * rest) // left - 1
    return np.isin(np.arange(num_steps), np.concatenate([np.arange(warmup), later]))


def foresight_steps(own: np.ndarray, count: int) -> np.ndarray:
    """What Foresight's rule computes where the whole model is one block, bool (S,).

    Set to the shortest interval, and there to the highest threshold, that compute `count` steps; to
    what comes closest if none does.

    Args:
        own: (S, S) inner products of the uncached predictions.
        count: Steps to compute.
    """
    outputs = torch.from_numpy(coordinates(own))
    steps = len(outputs)
    warmup = warmup_length(None, steps)
    enough = [each for each in range(2, steps) if warmup + (steps - warmup) // each <= count]
    best = np.ones(steps, bool)
    for interval in [*enough[:2], steps]:
        for threshold in THRESHOLDS:
            policy = ForesightPolicy(float(threshold), interval)
            found = _decisions(ForesightController(policy, warmup), outputs)
            if abs(found.sum() - count) < abs(best.sum() - count):
                best = found
            if best.sum() == count:
                return best
    return best


def _decisions(controller: ForesightController, outputs: torch.Tensor) -> np.ndarray:
    computed = np.zeros(len(outputs), bool)
    cached = None
    for step, output in enumerate(outputs):
        computed[step] = not controller.reuses(step, 0, 0)
        if computed[step]:
            controller.observe(step, 0, 0, output, cached)
            cached = output
    return computed


def local_search(
    computed: np.ndarray,
    error_of: Callable[[np.ndarray], float],
    evaluations: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """Move a computed step by one for as long as it helps.

    Args:
        computed: bool (S,), where to start; step 0 stays computed.
        error_of: Measures the error of such a choice.
        evaluations: Choices to measure at most, beside the start; none is measured twice.
        rng: Which move is tried next.

    Returns:
        bool (S,), the best choice met, with as many computed steps.
    """
    least, seen = error_of(computed), {computed.tobytes()}
    while len(seen) <= evaluations:
        fresh = [choice for choice in _moved(computed) if choice.tobytes() not in seen]
        if not fresh:
            break
        choice = fresh[rng.integers(len(fresh))]
        seen.add(choice.tobytes())
        error = error_of(choice)
        if error < least:
            computed, least = choice, error
    return computed


def _moved(computed: np.ndarray) -> Iterator[np.ndarray]:
    """All choices that differ by a move."""
    for step in range(1, len(computed) - 1):
        if computed[step] != computed[step + 1]:
            other = computed.copy()
            other[[step, step + 1]] = computed[[step + 1, step]]
            yield other
