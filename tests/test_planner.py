import itertools

import numpy as np
import pytest

from foresight.config import UserError
from foresight.planner import shortest_path, steps_for_speedup


def path_cost(weight: np.ndarray, computed: tuple[int, ...]) -> float:
    """Summed weight of (previous, latest, next) along the computed steps; the end is step S."""
    triples = zip((0, *computed), computed, (*computed[1:], len(weight)), strict=False)
    return sum(weight[previous, latest, following] for previous, latest, following in triples)


def all_choices(steps: int, count: int):
    return ((0, *rest) for rest in itertools.combinations(range(1, steps), count - 1))


def random_weight(rng: np.random.Generator, steps: int) -> np.ndarray:
    p, a, n = np.meshgrid(range(steps), range(steps), range(steps + 1), indexing="ij")
    allowed = ((p < a) | ((p == 0) & (a == 0))) & (a < n)
    return np.where(allowed, rng.exponential(size=allowed.shape), np.inf)


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 8])
def test_shortest_path_equals_brute_force(rng, steps):
    for _ in range(6):
        weight = random_weight(rng, steps)
        for count in range(1, steps + 1):
            best = min(all_choices(steps, count), key=lambda choice: path_cost(weight, choice))
            found = tuple(np.flatnonzero(shortest_path(weight, count)))
            assert found == best


def test_runs_that_are_too_long_are_left_out_even_if_the_rest_costs_more(rng):
    """Infinite weights, as of runs that skip more than two steps."""
    weight = random_weight(rng, 8)
    _, latest, following = np.indices(weight.shape)
    weight[following - latest > 3] = np.inf
    for count in range(3, 9):
        choices = all_choices(8, count)
        possible = [each for each in choices if np.isfinite(path_cost(weight, each))]
        best = min(possible, key=lambda choice: path_cost(weight, choice))
        assert tuple(np.flatnonzero(shortest_path(weight, count))) == best


@pytest.mark.parametrize("speedup", [1.0, 1.25, 2.0, 3.7])
def test_allowed_steps_fill_the_time_exactly(speedup):
    steps, stack, overhead, skip = 40, 0.1, 0.01, 0.002
    allowed = steps_for_speedup(speedup, steps, stack, overhead, skip)
    took = allowed * stack + (steps - allowed) * skip + steps * overhead
    assert took <= steps * (stack + overhead) / speedup + 1e-9
    if speedup > 1:
        assert took == pytest.approx(steps * (stack + overhead) / speedup)
        assert 1 <= allowed < steps


def test_speedups_out_of_reach_are_refused_with_the_highest():
    steps, stack, overhead = 30, 0.09, 0.01
    highest = 30 * 0.1 / (0.09 + 30 * 0.01)
    assert steps_for_speedup(highest * 0.9999, steps, stack, overhead) == pytest.approx(1, abs=0.01)
    with pytest.raises(UserError, match=f"--speedup 12 .* the most is {highest:.2f}"):
        steps_for_speedup(12.0, steps, stack, overhead)
    with pytest.raises(UserError, match=r"--speedup 0.5 would slow down"):
        steps_for_speedup(0.5, steps, stack, overhead)
