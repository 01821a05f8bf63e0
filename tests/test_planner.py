import itertools

import numpy as np
import pytest

from foresight.config import UserError
from foresight.planner import run_weights, shortest_path, steps_for_speedup


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


def damage(
    amplitude: np.ndarray, computed: tuple[int, ...], power: float, between=None, leak=None
) -> float:
    """The definition, step by step: amplitudes add up in a run, runs as a power of them.

    Where a computed step ends a run and corrects, what is left of each error counts instead.
    """
    total, previous, latest = 0.0, 0, 0
    steps = len(amplitude)
    for following in (*computed[1:], steps):
        run = 0.0
        for step in range(latest + 1, following):
            off = amplitude[previous, latest, step]
            if between is None or following == steps:
                run += off
            else:  # the best of a thousand strengths
                strength = np.linspace(0, 1, 1001)
                left = min(between[latest, following, step], off) ** 2
                wrong = leak[following, step] * off**2
                run += np.sqrt(
                    (left + (1 - strength) ** 2 * (off**2 - left) + strength**2 * wrong).min()
                )
        total += run ** (2 * power)
        previous, latest = latest, following
    return total


@pytest.mark.parametrize("power", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("corrects", [False, True])
def test_planned_damage_is_the_least_of_all_plans(rng, power, corrects):
    steps = 8
    amplitude = rng.exponential(size=(steps, steps, steps))
    between = 0.3 * rng.exponential(size=(steps, steps, steps)) if corrects else None
    rule = {"power": power, "between": between, "leak": rng.uniform(0, 0.5, (steps, steps))}
    weight = run_weights(amplitude, **rule)
    for count in range(1, steps + 1):
        choices = list(all_choices(steps, count))
        costs = [damage(amplitude, choice, **rule) for choice in choices]
        assert costs == pytest.approx([path_cost(weight, choice) for choice in choices], rel=1e-5)
        planned = tuple(np.flatnonzero(shortest_path(weight, count)))
        assert damage(amplitude, planned, **rule) == pytest.approx(min(costs), rel=1e-5)


def test_runs_that_are_too_long_stay_infinite(rng):
    amplitude, between = rng.exponential(size=(2, 6, 6, 6))
    p, a, s = np.meshgrid(range(6), range(6), range(6), indexing="ij")
    amplitude[s - a > 2] = np.inf
    between[a - p > 3] = np.inf
    weight = run_weights(amplitude, 1.0, between, 0.1)
    assert not np.isnan(weight).any()
    assert np.isinf(weight[0, 1, 5])
    assert np.isfinite(weight[0, 1, 4])


def test_weights_are_infinite_where_no_run_can_be(rng):
    weight = run_weights(rng.exponential(size=(5, 5, 5)), 1.0)
    for p, a, n in np.ndindex(weight.shape):
        possible = (p < a or p == a == 0) and a < n
        assert np.isfinite(weight[p, a, n]) == possible
        if possible and n == a + 1:
            assert weight[p, a, n] == 0


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
