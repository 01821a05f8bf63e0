"""Weights of multistep plans, against real solvers that carry them out.

The model predicts what it does in the uncached generation, so that everything the theory says must
hold exactly.
"""

import itertools

import numpy as np
import pytest
import torch
from solvers_by_hand import (
    MULTISTEP,
    ONE_STEP,
    SOLVER_STEPS,
    known_solver,
    latents_along,
    precision,
    ready,
)

from foresight.plan import HISTORY, Plan, plain_weights
from foresight.planner import shortest_path
from foresight.policies import multistep
from foresight.policies.multistep import (
    doubts_at,
    local_energies,
    multistep_weights,
    run_energies,
    with_first_latents,
)
from foresight.solver import Solver, euler_solver

WIDTH = 40
ON_ALL = pytest.mark.parametrize("scheduler", ONE_STEP + MULTISTEP, ids=lambda s: type(s).__name__)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def unbound(monkeypatch):
    """Plain least squares of the latents: no ridge, and no heed to predictions."""
    monkeypatch.setattr(multistep, "RIDGE", 1e-14)
    monkeypatch.setattr(multistep, "SMOOTHNESS", 0.0)


def steps_where(*computed: int, steps: int = SOLVER_STEPS) -> np.ndarray:
    return np.isin(np.arange(steps), computed)


def walk(steps: int = SOLVER_STEPS) -> tuple[torch.Tensor, torch.Tensor]:
    """Predictions (S, D) that wander, and first latents (D,) that they have to do with."""
    first = torch.randn(WIDTH, dtype=torch.float64)
    start = torch.randn(WIDTH, dtype=torch.float64) - 0.5 * first
    wander = torch.randn(steps, WIDTH, dtype=torch.float64).cumsum(dim=0)
    return start + 0.4 * wander, first


def gram_of(true: torch.Tensor, first: torch.Tensor) -> np.ndarray:
    vectors = torch.cat([true, first[None]]).numpy()
    return vectors @ vectors.T


def uncached(scheduler, true: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
    return latents_along(scheduler, first, lambda step, _: true[step], len(true))


def carried_out(
    scheduler, true: torch.Tensor, first: torch.Tensor, computed: np.ndarray, weights: np.ndarray
) -> torch.Tensor:
    """Latents (S + 1, D) of a plan, by its definition."""
    done: list[torch.Tensor] = []

    def predict(step: int, latents: torch.Tensor) -> torch.Tensor:
        if computed[step]:
            done.insert(0, true[step])
        value = weights[step, HISTORY] * latents
        for weight, prediction in zip(weights[step, :HISTORY], done, strict=False):
            value = value + weight * prediction
        return value

    return latents_along(scheduler, first, predict, len(true))


def off_after(scheduler, true, first, computed, weights) -> np.ndarray:
    """How far latents (S, D) are off after every step."""
    found = carried_out(scheduler, true, first, computed, weights)
    return (found - uncached(scheduler, true, first))[1:].numpy()


def random_weights(rng: np.random.Generator, computed: np.ndarray) -> np.ndarray:
    """Any that the plan can carry out."""
    weights = rng.normal(size=(len(computed), HISTORY + 1))
    weights[:, :HISTORY] *= np.cumsum(computed)[:, None] > np.arange(HISTORY)
    return weights


RUNS = {
    "first run": (0,),
    "second": (0, 1),
    "one step": (0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11),
    "short of the end": (0, 1, 2, 3, 4, 11),
    "to the end": (0, 1, 2, 3, 4, 5, 6, 7, 8),
}


@ON_ALL
@pytest.mark.parametrize("computed", RUNS.values(), ids=RUNS)
def test_the_energy_of_a_run_is_how_far_a_generation_that_skips_it_is_off(scheduler, computed, rng):
    """Whatever its weights are; nothing else is skipped."""
    (true, first), plan = walk(), steps_where(*computed)
    weights = np.where(plan[:, None], plain_weights(SOLVER_STEPS), random_weights(rng, plan))
    ((latest, following, energy),) = run_energies(
        gram_of(true, first), known_solver(scheduler), plan, weights
    )
    skipped = np.flatnonzero(~plan)
    assert (latest, following) == (skipped[0] - 1, skipped[-1] + 1)
    off = off_after(scheduler, true, first, plan, weights)[following - 1]
    assert energy == pytest.approx(np.square(off).sum(), rel=2 * precision(scheduler))


@ON_ALL
def test_runs_of_a_plan_do_not_see_one_another(scheduler, rng):
    """Each is taken as if the model were run, and nothing corrected, at all other steps."""
    (true, first), plan = walk(), steps_where(0, 3, 4, 6, 7, 10)
    weights = random_weights(rng, plan)
    found = list(run_energies(gram_of(true, first), known_solver(scheduler), plan, weights))
    assert [run[:2] for run in found] == [(0, 3), (4, 6), (7, 10), (10, 12)]
    plain = uncached(scheduler, true, first)
    for latest, following, energy in found:
        held = [true[step] for step in np.flatnonzero(plan[: latest + 1])[::-1]]

        def predict(step, latents, latest=latest, following=following, held=held):
            if not latest < step < following:
                return true[step]
            recent = zip(weights[step, :HISTORY], held, strict=False)
            return sum(weight * v for weight, v in recent) + weights[step, HISTORY] * latents

        off = (latents_along(scheduler, first, predict) - plain)[following]
        assert energy == pytest.approx(off.square().sum().item(), rel=2 * precision(scheduler))


@ON_ALL
@pytest.mark.parametrize("computed", [(0,), (0, 1)], ids=str)
@pytest.mark.parametrize("knows_first", [True, False])
def test_first_runs_leave_what_their_best_weights_leave(scheduler, computed, knows_first):
    """The local energies of every length, by generations under the weights of the plan."""
    (true, first), solver = walk(), known_solver(scheduler)
    gram = gram_of(true, first if knows_first else 0 * first)
    plan = steps_where(*computed)
    weights = multistep_weights(gram, solver, plan)
    off = off_after(scheduler, true, first, plan, weights)
    energies = local_energies(gram, solver, longest=SOLVER_STEPS)
    assert weights[~plan, HISTORY].any() == knows_first
    for following in range(len(computed) + 1, SOLVER_STEPS + 1):
        expected = np.square(off[following - 1]).sum()
        found = energies[0, len(computed) - 1, following]
        assert found == pytest.approx(expected, rel=5 * precision(scheduler))


PLANS = [(0, 3, 4, 7, 8), (0, 2, 4, 5, 6, 10)]


@ON_ALL
@pytest.mark.parametrize("computed", PLANS, ids=str)
@pytest.mark.parametrize("knows_first", [True, False])
@pytest.mark.usefixtures("unbound")
def test_no_other_weights_leave_less_after_their_step(scheduler, computed, knows_first, rng):
    (true, first), plan = walk(), steps_where(*computed)
    gram = gram_of(true, first if knows_first else 0 * first)
    weights, plain = (
        multistep_weights(gram, known_solver(scheduler), plan),
        uncached(scheduler, true, first),
    )

    def left_after(weights):
        off = (carried_out(scheduler, true, first, plan, weights) - plain)[1:]
        return off.norm(dim=1).numpy()

    least, worse = left_after(weights), 0
    for step in range(np.flatnonzero(~plan)[0], SOLVER_STEPS):
        readable = np.arange(HISTORY + 1) < plan[: step + 1].sum()
        readable[HISTORY] = knows_first
        ways = [*np.eye(HISTORY + 1)[readable], rng.normal(size=HISTORY + 1) * readable]
        for way, size in itertools.product(ways, (0.1, -0.1)):
            other = weights.copy()
            other[step] += size * way
            left = left_after(other)
            assert (left[:step] == least[:step]).all()
            assert left[step] > least[step] * (1 - 10 * precision(scheduler))
            worse += left[step] > least[step] * 1.0001
    assert worse > 50


def test_beside_right_latents_right_predictions_count(monkeypatch):
    """The more they do, the less a computed step is changed to make up for the one before it."""
    monkeypatch.setattr(multistep, "RIDGE", 1e-14)
    scheduler, plan = ONE_STEP[1], steps_where(0, 1, 3)
    (true, first), misses, distances = walk(), [], []
    for smoothness in (0.0, 0.3, 3.0):
        monkeypatch.setattr(multistep, "SMOOTHNESS", smoothness)
        weights = multistep_weights(gram_of(true, first), known_solver(scheduler), plan)
        latents = carried_out(scheduler, true, first, plan, weights)
        held, now = true[[3, 1, 0]].numpy(), latents[3].numpy()
        made = weights[3, :HISTORY] @ held + weights[3, HISTORY] * now
        misses.append(np.linalg.norm(made - true[3].numpy()))
        distances.append((latents - uncached(scheduler, true, first))[4].norm().item())
    assert misses == sorted(misses, reverse=True)
    assert distances == sorted(distances)
    assert misses[0] > 1.01 * misses[-1]
    assert distances[-1] > 1.01 * distances[0]


# Generations that can be followed exactly.


@ON_ALL
@pytest.mark.parametrize("knows_first", [True, False])
def test_a_constant_prediction_is_reused_as_it_is(scheduler, knows_first):
    first = torch.randn(WIDTH, dtype=torch.float64)
    true = torch.randn(WIDTH, dtype=torch.float64).repeat(SOLVER_STEPS, 1)
    gram = gram_of(true, first if knows_first else 0 * first)
    weights = multistep_weights(gram, known_solver(scheduler), steps_where(0, 5))
    assert weights == pytest.approx(plain_weights(SOLVER_STEPS), abs=1e-9)


@ON_ALL
@pytest.mark.usefixtures("unbound")
def test_predictions_on_a_line_are_followed_from_two(scheduler):
    start, drift, first = torch.randn(3, WIDTH, dtype=torch.float64)
    true = start + torch.arange(SOLVER_STEPS)[:, None] * drift
    plan = steps_where(0, 1, 6)
    weights = multistep_weights(gram_of(true, 0 * first), known_solver(scheduler), plan)
    off = off_after(scheduler, true, first, plan, weights)
    assert np.abs(off).max() < 1e-5
    with_plain = off_after(scheduler, true, first, plan, plain_weights(SOLVER_STEPS))
    assert np.abs(with_plain).max() > 0.1


@ON_ALL
def test_predictions_on_a_line_are_followed_closely_under_the_usual_ridge(scheduler):
    start, drift, first = torch.randn(3, WIDTH, dtype=torch.float64)
    true = start + torch.arange(SOLVER_STEPS)[:, None] * drift
    plan = steps_where(0, 1, 6)
    weights = multistep_weights(gram_of(true, 0 * first), known_solver(scheduler), plan)
    off = off_after(scheduler, true, first, plan, weights)
    with_plain = off_after(scheduler, true, first, plan, plain_weights(SOLVER_STEPS))
    assert np.linalg.norm(off[-1]) < 0.03 * np.linalg.norm(with_plain[-1])


@ON_ALL
@pytest.mark.usefixtures("unbound")
def test_a_model_that_is_linear_in_its_latents_is_followed_with_them_alone(scheduler):
    """v[s] = alpha[s] x[s] + u + s w: known by two predictions and the latents, whatever alpha."""
    first, u, w = torch.randn(3, WIDTH, dtype=torch.float64)
    alpha = torch.linspace(-0.9, 0.8, SOLVER_STEPS, dtype=torch.float64).sin()
    true = torch.zeros(SOLVER_STEPS, WIDTH, dtype=torch.float64)

    def predict(step, latents):
        true[step] = alpha[step] * latents + u + step * w
        return true[step]

    latents_along(scheduler, first, predict)
    plan, off = steps_where(0, 2, 7), {}
    for knows_first in (True, False):
        gram = gram_of(true, first if knows_first else 0 * first)
        weights = multistep_weights(gram, known_solver(scheduler), plan)
        assert weights[:, HISTORY].any() == knows_first
        off[knows_first] = off_after(scheduler, true, first, plan, weights)
    assert np.abs(off[True][2:]).max() < 1e-4
    assert np.abs(off[False][2:]).max() > 0.01


@ON_ALL
@pytest.mark.usefixtures("unbound")
def test_what_lies_on_a_line_between_computed_steps_is_made_good_exactly(scheduler):
    """Predictions that bend at computed steps only: what stands in misses, the next one knows."""
    knots = torch.randn(2, WIDTH, dtype=torch.float64)
    first, drift = torch.randn(2, WIDTH, dtype=torch.float64)
    bend, places = 5, torch.arange(SOLVER_STEPS)
    share = ((places - 1).clamp(0) / (bend - 1))[:, None]
    true = knots[0] + drift * (places == 0)[:, None] + share * (knots[1] - knots[0])
    plan = steps_where(0, 1, *range(bend, SOLVER_STEPS))
    gram, solver = gram_of(true, 0 * first), known_solver(scheduler)
    off = off_after(scheduler, true, first, plan, multistep_weights(gram, solver, plan))
    assert np.linalg.norm(off[bend - 1]) > 0.1
    assert np.linalg.norm(off[bend]) < 1e-5
    if scheduler in ONE_STEP:  # others still look back at what was missed
        assert np.linalg.norm(off[-1]) < 1e-5


@pytest.mark.parametrize("scheduler", ONE_STEP[1:] + MULTISTEP, ids=lambda s: type(s).__name__)
def test_smooth_predictions_come_out_less_than_half_as_far_off(scheduler):
    """Than if nothing were corrected at computed steps."""
    steps = torch.linspace(0, 2, SOLVER_STEPS, dtype=torch.float64)[:, None]
    true = torch.sin(steps * torch.linspace(0.5, 2.5, WIDTH, dtype=torch.float64))
    first, plan = torch.ones(WIDTH, dtype=torch.float64), steps_where(0, 1, 4, 5, 8, 11)
    solver, gram = known_solver(scheduler), gram_of(true, 0 * first)
    off = [
        off_after(scheduler, true, first, plan, multistep_weights(gram, each, plan))[-1]
        for each in (solver, solver._replace(known=False))
    ]
    assert np.linalg.norm(off[0]) < np.linalg.norm(off[1]) / 2


# What weights may not do.


@ON_ALL
def test_until_something_is_skipped_steps_are_plain_bit_for_bit(scheduler, rng):
    (true, first), solver = walk(), known_solver(scheduler)
    gram, plain = gram_of(true, first), plain_weights(SOLVER_STEPS)
    assert (multistep_weights(gram, solver, np.ones(SOLVER_STEPS, bool)) == plain).all()
    for until in (1, 4, 11):
        plan = (np.arange(SOLVER_STEPS) < until) | (rng.random(SOLVER_STEPS) < 0.4)
        plan[until] = False
        weights = multistep_weights(gram, solver, plan)
        assert (weights[:until] == plain[:until]).all()
        assert (weights[until:] != plain[until:]).any(axis=1).all()


def test_where_the_solver_is_not_known_computed_steps_are_plain():
    """What is skipped is still forecast, from predictions alone."""
    true, first = walk()
    solver = euler_solver(ready(ONE_STEP[1]).sigmas[:-1].numpy())
    plan = steps_where(0, 1, 4, 5, 8, 11)
    weights = multistep_weights(gram_of(true, first), solver, plan)
    assert (weights[plan] == plain_weights(1)).all()
    assert not weights[:, HISTORY].any()
    assert (weights[~plan, 1] != 0).all()


def test_where_the_solver_is_not_known_forecasts_are_least_squares(monkeypatch):
    monkeypatch.setattr(multistep, "RIDGE", 1e-14)
    true, first = walk()
    solver = euler_solver(ready(ONE_STEP[1]).sigmas[:-1].numpy())
    weights = multistep_weights(gram_of(true, first), solver, steps_where(0, 2, 3, 7))
    for step in (1, 4, 5, 6, 8, 11):
        held = [done for done in (7, 3, 2, 0) if done < step][:HISTORY]
        best = torch.linalg.lstsq(true[held].T, true[step][:, None]).solution[:, 0].tolist()
        expected = best + [0] * (HISTORY + 1 - len(best))
        assert weights[step] == pytest.approx(expected, rel=1e-5, abs=1e-6)


@ON_ALL
def test_latents_that_are_not_known_weigh_nothing(scheduler):
    true, first = walk()
    solver, plan = known_solver(scheduler), steps_where(0, 1, 4, 5, 8)
    weights = multistep_weights(gram_of(true, 0 * first), solver, plan)
    assert not weights[:, HISTORY].any()
    scaled = solver._replace(decay=np.zeros(SOLVER_STEPS))
    weights = multistep_weights(gram_of(true, first), scaled, plan)
    assert not weights[:, HISTORY].any()


@ON_ALL
def test_plans_can_carry_their_weights_out(scheduler, rng):
    """They read no more than was computed by then; `Plan` refuses what does."""
    true, first = walk()
    gram, solver = gram_of(true, first), known_solver(scheduler)
    for _ in range(20):
        computed = rng.random(SOLVER_STEPS) < 0.4
        computed[0] = True
        weights = multistep_weights(gram, solver, computed)
        assert np.isfinite(weights).all()
        Plan.of_output(computed, weights, 2)


def test_inner_products_are_put_together_in_order():
    true, first = walk()
    products = torch.cat([true @ first, (first @ first)[None]]).numpy()
    found = with_first_latents((true @ true.T).numpy(), products)
    assert found == pytest.approx(gram_of(true, first), rel=1e-12)


# The energies of all runs, by hand.

FEW, LONGEST = 8, 4


def best_stand_in(ways: np.ndarray, plain: np.ndarray, needed: np.ndarray, true: np.ndarray):
    """Plain plus some of the ways: near what is needed, to a lesser part to what is true."""
    smooth = np.sqrt(multistep.SMOOTHNESS)
    size = np.sqrt(multistep.RIDGE * (1 + smooth**2) * np.square(ways).sum(axis=1))
    rows = np.concatenate([ways.T, smooth * ways.T, np.diag(size)])
    sought = np.concatenate([needed - plain, smooth * (true - plain), np.zeros(len(ways))])
    return plain + np.linalg.lstsq(rows, sought, rcond=None)[0] @ ways


def left_by(true, first, solver: Solver, previous: int, latest: int, following: int) -> float:
    """What one run leaves, by vectors, step by step."""
    latents = np.concatenate(
        [first[None], solver.decay[:, None] * first + solver.response.T @ true]
    )
    returned, now = true.copy(), latents[latest + 1]
    for step in range(latest + 1, following):
        own = solver.response[step, step]
        without = solver.decay[step] * first + solver.response[:step, step] @ returned[:step]
        ways = [true[latest], now]
        if previous < latest:
            ways.append(true[latest] - true[previous])
        needed = (latents[step + 1] - without) / own
        returned[step] = best_stand_in(np.stack(ways), true[latest], needed, true[step])
        now = without + own * returned[step]
    return float(np.square(now - latents[following]).sum())


@pytest.fixture(params=[*ONE_STEP, *MULTISTEP], ids=lambda s: type(s).__name__)
def few(request) -> tuple[np.ndarray, np.ndarray, Solver]:
    true, first = walk(FEW)
    return true.numpy(), first.numpy(), known_solver(request.param, FEW)


def test_local_energies_are_those_of_every_run_by_itself(few):
    true, first, solver = few
    gram = gram_of(torch.from_numpy(true), torch.from_numpy(first))
    found = local_energies(gram, solver, longest=LONGEST)
    assert found.shape == (FEW, FEW, FEW + 1)
    for p, a, n in np.ndindex(found.shape):
        known = p == a == 0 or 0 < a - p <= LONGEST + 1
        possible = known and 0 <= n - a - 1 <= LONGEST
        assert np.isfinite(found[p, a, n]) == possible
        if possible and n == a + 1:
            assert found[p, a, n] == 0
        elif possible:
            expected = left_by(true, first, solver, p, a, n)
            assert found[p, a, n] == pytest.approx(expected, rel=1e-6, abs=1e-11)


@pytest.mark.parametrize("power", [0.5, 1.0, 1.7])
def test_the_planned_damage_is_the_least_of_all_plans(power):
    true, first = (each.numpy() for each in walk(FEW))
    solver = known_solver(ONE_STEP[1], FEW)
    gram = gram_of(torch.from_numpy(true), torch.from_numpy(first))
    weight = local_energies(gram, solver, longest=FEW) ** power
    for count in range(1, FEW + 1):
        costs = {}
        for rest in itertools.combinations(range(1, FEW), count - 1):
            order = (0, *rest, FEW)
            runs = zip((0, *order), order, order[1:], strict=False)
            costs[0, *rest] = sum(
                left_by(true, first, solver, *run) ** power for run in runs if run[2] > run[1] + 1
            )
        planned = tuple(np.flatnonzero(shortest_path(weight, count)).tolist())
        assert costs[planned] == pytest.approx(min(costs.values()), rel=1e-9)


def test_doubts_are_energies_that_only_what_is_held_has(unbound, rng):
    """Ridge regression by hand: a private coordinate for each of two predictions."""
    (true, _), doubts = walk(), rng.uniform(0.5, 2, size=SOLVER_STEPS)
    vectors = true.numpy()
    gram = with_first_latents(vectors @ vectors.T, np.zeros(SOLVER_STEPS + 1))
    scale = np.diag(gram)[:-1].mean()
    found = multistep_weights(
        gram, known_solver(ONE_STEP[1]), steps_where(0, 1, 3, 4), doubts=doubts
    )
    held = np.concatenate([vectors[[1, 0]].T, np.diag(np.sqrt(doubts[[1, 0]] * scale))])
    wanted = np.concatenate([vectors[2], np.zeros(2)])
    expected = np.linalg.lstsq(held, wanted, rcond=None)[0]
    assert found[2] == pytest.approx([*expected, 0, 0], rel=1e-6)


def test_doubts_grow_with_the_noise_and_change_nothing_before_a_skipped_step():
    doubts = doubts_at(np.linspace(1.0, 0.0, SOLVER_STEPS))
    assert np.isfinite(doubts).all()
    assert (np.diff(doubts) <= 0).all()
    gram, solver = gram_of(*walk()), known_solver(ONE_STEP[0])
    found = multistep_weights(gram, solver, steps_where(0, 1, 2, 5), doubts=doubts)
    assert (found[:3] == plain_weights(3)).all()
