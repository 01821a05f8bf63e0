import itertools

import numpy as np
import pytest

from foresight.config import UserError
from foresight.planner import refine, shortest_paths, steps_for_speedup


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
def test_shortest_paths_equal_brute_force(rng, steps):
    for _ in range(6):
        weight = random_weight(rng, steps)
        for count, (least, found) in enumerate(shortest_paths(weight, steps), start=1):
            best = min(all_choices(steps, count), key=lambda choice: path_cost(weight, choice))
            assert tuple(np.flatnonzero(found)) == best
            assert least == pytest.approx(path_cost(weight, best))
        assert count == steps


def test_runs_that_are_too_long_are_left_out_even_if_the_rest_costs_more(rng):
    """Infinite weights, as of runs that skip more than two steps."""
    weight = random_weight(rng, 8)
    _, latest, following = np.indices(weight.shape)
    weight[following - latest > 3] = np.inf
    for count, (_, found) in enumerate(shortest_paths(weight, 8), start=1):
        choices = all_choices(8, count)
        possible = [each for each in choices if np.isfinite(path_cost(weight, each))]
        if possible:
            best = min(possible, key=lambda choice: path_cost(weight, choice))
            assert tuple(np.flatnonzero(found)) == best
    assert count == 8


# Local search.


def as_choice(steps: int, computed: tuple[int, ...]) -> np.ndarray:
    return np.isin(np.arange(steps), computed)


def moves_by_hand(choice: tuple[int, ...], steps: int) -> set[tuple[int, ...]]:
    """One computed step, but not step 0, up to two earlier or later."""
    found = set()
    for place, step in enumerate(choice):
        for target in range(step - 2, step + 3):
            if step and 0 < target < steps and target not in choice:
                found.add(tuple(sorted((*choice[:place], *choice[place + 1 :], target))))
    return found


@pytest.fixture(params=range(4))
def landscape(request):
    """A cost of every choice of four of nine steps; sets of those that were asked for."""
    rng = np.random.default_rng(request.param)
    cost = {choice: rng.exponential() for choice in all_choices(9, 4)}
    asked: list[set[tuple[int, ...]]] = []

    def energies(choices: np.ndarray) -> np.ndarray:
        found = [tuple(np.flatnonzero(choice).tolist()) for choice in choices]
        asked.append(set(found))
        assert len(asked[-1]) == len(found)
        return np.array([cost[each] for each in found])

    return cost, energies, asked


def test_a_local_search_takes_the_best_move_until_none_helps(landscape):
    cost, energies, asked = landscape
    for start in all_choices(9, 4):
        asked.clear()
        found = tuple(np.flatnonzero(refine(as_choice(9, start), energies)).tolist())
        assert found[0] == 0
        assert len(found) == 4
        here = start
        for moves in asked[1:]:
            assert moves == moves_by_hand(here, 9)
            best = min(moves, key=cost.__getitem__)
            if cost[best] >= 0.999 * cost[here]:
                break
            here = best
        assert found == here
        assert cost[found] <= cost[start]
        assert all(cost[move] >= 0.999 * cost[found] for move in moves_by_hand(found, 9))


def test_a_local_search_finds_the_best_where_costs_slope_towards_it():
    wanted = np.array([0, 3, 6, 8, 13])

    def energies(choices: np.ndarray) -> np.ndarray:
        return np.array([abs(np.flatnonzero(each) - wanted).sum() + 1.0 for each in choices])

    for start in ((0, 1, 2, 3, 4), (0, 10, 11, 12, 13), (0, 2, 5, 9, 12)):
        found = refine(as_choice(14, start), energies)
        assert np.flatnonzero(found).tolist() == wanted.tolist()


@pytest.mark.parametrize("computed", [(0,), (0, 1, 2, 3, 4)], ids=str)
def test_where_nothing_can_move_nothing_is_searched(computed):
    start = as_choice(5, computed)
    assert (refine(start, lambda choices: np.ones(len(choices))) == start).all()


def test_gains_that_are_rounding_are_not_worth_a_move():
    start = as_choice(6, (0, 2))
    found = refine(start, lambda choices: 1 - 1e-6 * choices[:, 5] - 1e-6 * choices[:, 4])
    assert (found == start).all()


# Budgets.


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
