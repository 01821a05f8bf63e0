"""Plans carried out on paper, against real solvers that carry them out.

The model is a toy that answers latents that are off as the theory says, so that everything must
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
from foresight.planner import shortest_paths
from foresight.policies import multistep
from foresight.policies.multistep import carry_out, coordinates, local_energies
from foresight.policies.reaction import Reaction
from foresight.solver import Solver, euler_solver

WIDTH = 40
ON_ALL = pytest.mark.parametrize("scheduler", ONE_STEP + MULTISTEP, ids=lambda s: type(s).__name__)
ON_ONE_STEP = pytest.mark.parametrize("scheduler", ONE_STEP, ids=lambda s: type(s).__name__)
UNMOVED = Reaction(*np.zeros((2, SOLVER_STEPS)))
REACTIONS = {
    "unmoved": UNMOVED,
    "coherent": UNMOVED._replace(coherent=np.linspace(-0.9, 0.7, SOLVER_STEPS)),
    "both": Reaction(np.cos(np.arange(SOLVER_STEPS)), np.sin(np.arange(SOLVER_STEPS)) / 2),
}
REACTIONS["lasting"] = REACTIONS["both"]._replace(lasting=np.linspace(0.9, 0.1, SOLVER_STEPS))
REACTING = pytest.mark.parametrize("reaction", REACTIONS.values(), ids=REACTIONS)


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


def walk(steps: int = SOLVER_STEPS) -> torch.Tensor:
    """Predictions (S, D) that wander."""
    wander = torch.randn(steps, WIDTH, dtype=torch.float64).cumsum(dim=0)
    return torch.randn(WIDTH, dtype=torch.float64) + 0.4 * wander


def path_of(true: torch.Tensor) -> np.ndarray:
    return coordinates((true @ true.T).numpy())


def off_after(
    scheduler, true: torch.Tensor, computed: np.ndarray, weights: np.ndarray, reaction=UNMOVED
) -> np.ndarray:
    """How far latents (S, 2 * D + S) of a real run are off after every step.

    Predictions lie in both halves of all directions. Latents that are off by e make the model miss
    its uncached prediction by more of e in the one half than in the other, and by what does not
    last in a direction that is the step's own.
    """
    steps, width = true.shape
    lasting = np.ones(steps) if reaction.lasting is None else reaction.lasting
    own = torch.eye(steps).double()
    true = torch.cat([true, true, torch.zeros_like(own)], dim=1) / 2**0.5
    halves = torch.tensor([1.0] * width + [-1.0] * width + [0.0] * steps).double()
    first, done = torch.randn(len(halves), dtype=torch.float64), []
    plain = latents_along(scheduler, first, lambda step, _: true[step], steps)

    def predict(step: int, latents: torch.Tensor) -> torch.Tensor:
        if computed[step]:
            error = latents - plain[step]
            lasts = float(lasting[step])
            missed = (reaction.coherent[step] + reaction.spread[step] * lasts * halves) * error
            missed[-steps:] += (
                reaction.spread[step] * (1 - lasts**2) ** 0.5 * error.norm() * own[step]
            )
            done.insert(0, true[step] + missed)
        recent = zip(weights[step].tolist(), done, strict=False)
        return sum(weight * prediction for weight, prediction in recent)

    return (latents_along(scheduler, first, predict, steps) - plain)[1:].numpy()


def random_plan(rng: np.random.Generator) -> np.ndarray:
    computed = rng.random(SOLVER_STEPS) < 0.5
    computed[0] = True
    return computed


def random_weights(rng: np.random.Generator, computed: np.ndarray) -> np.ndarray:
    """Any that the plan can carry out."""
    weights = rng.normal(size=(len(computed), HISTORY)) / 2
    return weights * (np.cumsum(computed)[:, None] > np.arange(HISTORY))


def carried(true: torch.Tensor, solver: Solver, computed: np.ndarray, reaction=UNMOVED, **few):
    """Weights (S, HISTORY) and energy of one plan."""
    weights, energies = carry_out(path_of(true), solver, reaction, computed[None], **few)
    return weights[0], energies[0]


# Predicted energies, and what weights do.


@ON_ALL
@REACTING
def test_the_energy_of_any_weights_is_how_far_a_real_run_ends_off(scheduler, reaction, rng):
    true, solver = walk(), known_solver(scheduler)
    for _ in range(5):
        plan = random_plan(rng)
        weights = random_weights(rng, plan)[None]
        found, (energy,) = carry_out(path_of(true), solver, reaction, plan[None], weights)
        assert (found == weights).all()
        off = off_after(scheduler, true, plan, weights[0], reaction)[-1]
        assert energy == pytest.approx(np.square(off).sum(), rel=10 * precision(scheduler))


@ON_ALL
@REACTING
def test_the_energy_of_chosen_weights_is_how_far_a_real_run_of_them_ends_off(
    scheduler, reaction, rng
):
    true, solver = walk(), known_solver(scheduler)
    for _ in range(5):
        plan = random_plan(rng)
        weights, energy = carried(true, solver, plan, reaction)
        off = off_after(scheduler, true, plan, weights, reaction)[-1]
        assert energy == pytest.approx(np.square(off).sum(), rel=10 * precision(scheduler))
        again = carry_out(path_of(true), solver, reaction, plan[None], weights[None])[1]
        assert again == pytest.approx(energy)


@ON_ONE_STEP
@pytest.mark.parametrize("lasting", [None, 0.0, 0.6], ids=["all lasts", "nothing lasts", "some"])
def test_what_one_skipped_step_leaves_grows_by_the_reaction_of_every_later_one(scheduler, lasting):
    """Under plain weights, by energies in both halves and elsewhere."""
    true, solver, missed = walk(), known_solver(scheduler), 4
    own, kept = np.diag(solver.response), solver.decay[1:] / solver.decay[:-1]
    begun = np.square(own[missed] * (true[missed - 1] - true[missed]).numpy()).sum()
    one, other, rest = begun / 2, begun / 2, 0.0
    lasts = 1.0 if lasting is None else lasting
    for step in range(missed + 1, SOLVER_STEPS):
        coherent, spread = (part[step] for part in REACTIONS["both"][:2])
        fresh = (one + other + rest) * (own[step] * spread) ** 2 * (1 - lasts**2)
        one *= (kept[step - 1] + own[step] * (coherent + lasts * spread)) ** 2
        other *= (kept[step - 1] + own[step] * (coherent - lasts * spread)) ** 2
        rest = rest * (kept[step - 1] + own[step] * coherent) ** 2 + fresh
    plan = np.arange(SOLVER_STEPS) != missed
    share = None if lasting is None else np.full(SOLVER_STEPS, lasting)
    reaction, weights = REACTIONS["both"]._replace(lasting=share), plain_weights(SOLVER_STEPS)
    found = carry_out(path_of(true), solver, reaction, plan[None], weights[None])[1]
    assert found[0] == pytest.approx(one + other + rest, rel=10 * precision(scheduler))


@ON_ALL
def test_a_spread_of_which_all_lasts_is_the_cautious_one(scheduler, rng):
    """And one of which less does is not, in weights and in energies."""
    path, solver = path_of(walk()), known_solver(scheduler)
    plans = np.stack([random_plan(rng) for _ in range(6)])
    cautious, whole, part = (
        carry_out(path, solver, reaction, plans)
        for reaction in (
            REACTIONS["lasting"].cautious(),
            REACTIONS["both"]._replace(lasting=np.ones(SOLVER_STEPS)),
            REACTIONS["lasting"],
        )
    )
    for expected, found, other in zip(cautious, whole, part, strict=True):
        assert found == pytest.approx(expected, rel=1e-6, abs=1e-9)
        assert not np.allclose(other, expected, rtol=1e-3, atol=1e-6)


@ON_ALL
@REACTING
def test_plans_together_are_each_by_itself(scheduler, reaction, rng):
    path, solver = path_of(walk()), known_solver(scheduler)
    plans = np.stack([np.ones(SOLVER_STEPS, bool), *(random_plan(rng) for _ in range(7))])
    given = np.stack([random_weights(rng, plan) for plan in plans])
    for weights in (None, given):
        together, energies = carry_out(path, solver, reaction, plans, weights)
        for place, plan in enumerate(plans):
            own = None if weights is None else weights[place, None]
            alone, energy = carry_out(path, solver, reaction, plan[None], own)
            assert together[place] == pytest.approx(alone[0], abs=1e-9)
            assert energies[place] == pytest.approx(energy[0], rel=1e-9)


@ON_ALL
@REACTING
def test_until_something_is_skipped_steps_are_plain_bit_for_bit_and_right(scheduler, reaction, rng):
    true, solver = walk(), known_solver(scheduler)
    plain = plain_weights(SOLVER_STEPS)
    weights, energy = carried(true, solver, np.ones(SOLVER_STEPS, bool), reaction)
    assert energy == 0
    assert (weights == plain).all()
    for until in (1, 4, 11):
        plan = (np.arange(SOLVER_STEPS) < until) | (rng.random(SOLVER_STEPS) < 0.4)
        plan[until] = False
        weights, energy = carried(true, solver, plan, reaction)
        assert energy > 0
        assert (weights[:until] == plain[:until]).all()
        assert (weights[until:] != plain[until:]).any(axis=1).all()


@ON_ALL
@pytest.mark.parametrize(
    ("reaction", "history"),
    [
        *((reaction, HISTORY) for reaction in REACTIONS.values()),
        *((REACTIONS["lasting"], history) for history in range(1, HISTORY)),
    ],
    ids=[*REACTIONS, *(f"lasting, from {history}" for history in range(1, HISTORY))],
)
@pytest.mark.usefixtures("unbound")
def test_no_other_weights_leave_less_after_their_step(scheduler, reaction, rng, history):
    """Of those that read as few predictions."""
    true, plan = walk(), steps_where(0, 3, 4, 7, 8)
    weights, _ = carried(true, known_solver(scheduler), plan, reaction, history=history)
    assert not weights[:, history:].any()

    def left_after(weights):
        torch.manual_seed(1)
        return np.linalg.norm(off_after(scheduler, true, plan, weights, reaction), axis=1)

    least, worse = left_after(weights), 0
    for step in range(np.flatnonzero(~plan)[0], SOLVER_STEPS):
        readable = np.arange(HISTORY) < min(history, plan[: step + 1].sum())
        ways = rng.normal(size=(2, HISTORY)) * readable
        for way, size in itertools.product(ways, (0.1, -0.1)):
            other = weights.copy()
            other[step] += size * way
            left = left_after(other)
            assert (left[:step] == least[:step]).all()
            assert left[step] > least[step] * (1 - 10 * precision(scheduler))
            worse += left[step] > least[step] * 1.0001
    assert worse > 20


@ON_ALL
@REACTING
@pytest.mark.usefixtures("unbound")
def test_weights_of_the_last_step_end_nearest(scheduler, reaction, rng):
    """By predicted energies, which are those of real runs."""
    true, solver, plan = walk(), known_solver(scheduler), steps_where(0, 2, 5, 6, 9)
    path = path_of(true)
    weights, least = carried(true, solver, plan, reaction)
    other = np.repeat(weights[None], 40, axis=0)
    other[:, -1] += 1e-3 * rng.normal(size=(40, HISTORY))
    plans = np.repeat(plan[None], 40, axis=0)
    assert (carry_out(path, solver, reaction, plans, other)[1] > least).all()


def test_beside_right_latents_right_predictions_count(monkeypatch):
    """The more they do, the less a computed step is changed to make up for the one before it."""
    monkeypatch.setattr(multistep, "RIDGE", 1e-14)
    scheduler, plan = ONE_STEP[1], steps_where(0, 1, 3)
    true, misses, distances = walk(), [], []
    for smoothness in (0.0, 0.3, 3.0):
        monkeypatch.setattr(multistep, "SMOOTHNESS", smoothness)
        weights, _ = carried(true, known_solver(scheduler), plan)
        made = weights[3] @ true[[3, 1, 0]].numpy()
        misses.append(np.linalg.norm(made - true[3].numpy()))
        distances.append(np.linalg.norm(off_after(scheduler, true, plan, weights)[3]))
    assert misses == sorted(misses, reverse=True)
    assert distances == sorted(distances)
    assert misses[0] > 1.01 * misses[-1]
    assert distances[-1] > 1.01 * distances[0]


@ON_ALL
@pytest.mark.usefixtures("unbound")
def test_predictions_that_went_astray_are_trusted_less(scheduler):
    """The more a run makes them miss at right angles to what it missed, the less they weigh."""
    true, solver, plan = walk(), known_solver(scheduler), steps_where(0, 1, 2, 7, 8)
    own = []
    for size in (0.0, 1.0, 100.0):
        reaction = UNMOVED._replace(spread=np.full(SOLVER_STEPS, size))
        weights, _ = carried(true, solver, plan, reaction)
        own.append(abs(weights[7, 0]))
    assert own == sorted(own, reverse=True)
    assert own[-1] < 0.1 * own[0]


# Generations that can be followed exactly.


@ON_ALL
@REACTING
def test_a_constant_prediction_is_reused_as_it_is(scheduler, reaction):
    true = torch.randn(WIDTH, dtype=torch.float64).repeat(SOLVER_STEPS, 1)
    weights, energy = carried(true, known_solver(scheduler), steps_where(0, 5), reaction)
    assert weights == pytest.approx(plain_weights(SOLVER_STEPS), abs=1e-7)
    assert energy == pytest.approx(0, abs=1e-9)


@ON_ALL
@pytest.mark.usefixtures("unbound")
def test_predictions_on_a_line_are_followed_from_two(scheduler):
    start, drift = torch.randn(2, WIDTH, dtype=torch.float64)
    true = start + torch.arange(SOLVER_STEPS)[:, None] * drift
    plan = steps_where(0, 1, 6)
    weights, _ = carried(true, known_solver(scheduler), plan)
    assert np.abs(off_after(scheduler, true, plan, weights)).max() < 1e-4
    with_plain = off_after(scheduler, true, plan, plain_weights(SOLVER_STEPS))
    assert np.abs(with_plain).max() > 0.1


@ON_ALL
def test_predictions_on_a_line_are_followed_closely_under_the_usual_ridge(scheduler):
    start, drift = torch.randn(2, WIDTH, dtype=torch.float64)
    true = start + torch.arange(SOLVER_STEPS)[:, None] * drift
    plan = steps_where(0, 1, 6)
    weights, _ = carried(true, known_solver(scheduler), plan)
    off = off_after(scheduler, true, plan, weights)
    with_plain = off_after(scheduler, true, plan, plain_weights(SOLVER_STEPS))
    assert np.linalg.norm(off[-1]) < 0.03 * np.linalg.norm(with_plain[-1])


@ON_ALL
@pytest.mark.usefixtures("unbound")
def test_what_lies_on_a_line_between_computed_steps_is_made_good_exactly(scheduler):
    """Predictions that bend at computed steps only: what stands in misses, the next one knows."""
    knots, drift = torch.randn(2, WIDTH, dtype=torch.float64), torch.randn(WIDTH).double()
    bend, places = 5, torch.arange(SOLVER_STEPS)
    share = ((places - 1).clamp(0) / (bend - 1))[:, None]
    true = knots[0] + drift * (places == 0)[:, None] + share * (knots[1] - knots[0])
    plan = steps_where(0, 1, *range(bend, SOLVER_STEPS))
    weights, _ = carried(true, known_solver(scheduler), plan)
    off = off_after(scheduler, true, plan, weights)
    assert np.linalg.norm(off[bend - 1]) > 0.1
    assert np.linalg.norm(off[bend]) < 1e-4
    if scheduler in ONE_STEP:  # others still look back at what was missed
        assert np.linalg.norm(off[-1]) < 1e-4


@pytest.mark.parametrize("scheduler", ONE_STEP[1:] + MULTISTEP, ids=lambda s: type(s).__name__)
def test_smooth_predictions_come_out_less_than_half_as_far_off(scheduler):
    """Than if nothing were corrected at computed steps."""
    steps = torch.linspace(0, 2, SOLVER_STEPS, dtype=torch.float64)[:, None]
    true = torch.sin(steps * torch.linspace(0.5, 2.5, WIDTH, dtype=torch.float64))
    plan, solver = steps_where(0, 1, 4, 5, 8, 11), known_solver(scheduler)
    off = [
        off_after(scheduler, true, plan, carried(true, each, plan)[0])[-1]
        for each in (solver, solver._replace(known=False))
    ]
    assert np.linalg.norm(off[0]) < np.linalg.norm(off[1]) / 2


# What weights may not do.


def unknown_solver() -> Solver:
    return euler_solver(ready(ONE_STEP[1]).sigmas[:-1].numpy())


@REACTING
def test_where_the_solver_is_not_known_computed_steps_are_plain(reaction):
    """What is skipped is still forecast."""
    plan = steps_where(0, 1, 4, 5, 8, 11)
    weights, _ = carried(walk(), unknown_solver(), plan, reaction)
    assert (weights[plan] == plain_weights(1)).all()
    assert (weights[~plan, 1] != 0).all()


def test_where_the_solver_is_not_known_forecasts_are_least_squares(monkeypatch):
    monkeypatch.setattr(multistep, "RIDGE", 1e-14)
    true = walk()
    weights, _ = carried(true, unknown_solver(), steps_where(0, 2, 3, 7))
    for step in (1, 4, 5, 6, 8, 11):
        held = [done for done in (7, 3, 2, 0) if done < step][:HISTORY]
        best = torch.linalg.lstsq(true[held].T, true[step][:, None]).solution[:, 0].tolist()
        assert weights[step] == pytest.approx(best + [0] * (HISTORY - len(best)), rel=1e-5)


@ON_ALL
@REACTING
def test_plans_can_carry_their_weights_out(scheduler, reaction, rng):
    """They read no more than was computed by then; `Plan` refuses what does."""
    true, solver = walk(), known_solver(scheduler)
    for _ in range(20):
        computed = random_plan(rng)
        weights, energy = carried(true, solver, computed, reaction)
        assert np.isfinite(weights).all()
        assert np.isfinite(energy)
        Plan.of_output(computed, weights, 2)


# Coordinates, and the energies of all runs, by hand.


def test_coordinates_have_the_inner_products_in_as_few_dimensions_as_there_are(rng):
    full, flat = rng.normal(size=(8, 20)), rng.normal(size=(8, 3)) @ rng.normal(size=(3, 20))
    for vectors, rank in ((full, 8), (flat, 3)):
        found = coordinates(vectors @ vectors.T)
        assert found.shape == (8, rank)
        assert found @ found.T == pytest.approx(vectors @ vectors.T, abs=1e-7)


@ON_ALL
@pytest.mark.parametrize("computed", [(0,), (0, 1)], ids=str)
def test_first_runs_leave_what_their_best_weights_leave(scheduler, computed):
    """The local energies of every length, by real runs under the weights of the plan."""
    true, solver, plan = walk(), known_solver(scheduler), steps_where(*computed)
    off = off_after(scheduler, true, plan, carried(true, solver, plan)[0])
    energies = local_energies(path_of(true), solver, longest=SOLVER_STEPS)
    for following in range(len(computed) + 1, SOLVER_STEPS + 1):
        expected = np.square(off[following - 1]).sum()
        found = energies[0, len(computed) - 1, following]
        assert found == pytest.approx(expected, rel=10 * precision(scheduler))


FEW, LONGEST = 8, 4


def best_stand_in(ways: np.ndarray, plain: np.ndarray, needed: np.ndarray, true: np.ndarray):
    """Plain plus some of the ways: near what is needed, to a lesser part to what is true."""
    smooth = np.sqrt(multistep.SMOOTHNESS)
    size = np.sqrt(multistep.RIDGE * (1 + smooth**2) * np.square(ways).sum())
    rows = np.concatenate([ways.T, smooth * ways.T, size * np.eye(len(ways))])
    sought = np.concatenate([needed - plain, smooth * (true - plain), np.zeros(len(ways))])
    return plain + np.linalg.lstsq(rows, sought, rcond=None)[0] @ ways


def left_by(
    true: np.ndarray,
    solver: Solver,
    previous: int,
    latest: int,
    following: int,
    history: int = HISTORY,
) -> float:
    """What one run leaves, by vectors, step by step."""
    latents, returned, off = solver.response.T @ true, true.copy(), np.zeros(1)
    for step in range(latest + 1, following):
        own = solver.response[step, step]
        without = solver.response[:step, step] @ returned[:step]
        ways = true[latest][None]
        if previous < latest and history > 1:
            ways = np.stack([true[latest], true[latest] - true[previous]])
        needed = (latents[step] - without) / own if solver.known else true[step]
        returned[step] = best_stand_in(ways, true[latest], needed, true[step])
        off = without + own * returned[step] - latents[step]
    return float(np.square(off).sum())


@pytest.fixture(params=[*ONE_STEP, *MULTISTEP, None], ids=lambda s: type(s).__name__)
def few(request) -> tuple[np.ndarray, Solver]:
    """Predictions, and a solver; for none of all, a stand-in."""
    if request.param is None:
        return walk(FEW).numpy(), euler_solver(np.linspace(0.99, 0.1, FEW))
    return walk(FEW).numpy(), known_solver(request.param, FEW)


@pytest.mark.parametrize("history", range(1, HISTORY + 1))
def test_local_energies_are_those_of_every_run_by_itself(few, history):
    """Under weights that read the last prediction alone, or the last two."""
    true, solver = few
    path = coordinates(true @ true.T)
    found = local_energies(path, solver, longest=LONGEST, history=history)
    assert found.shape == (FEW, FEW, FEW + 1)
    for p, a, n in np.ndindex(found.shape):
        known = p == a == 0 or 0 < a - p <= LONGEST + 1
        possible = known and 0 <= n - a - 1 <= LONGEST
        assert np.isfinite(found[p, a, n]) == possible
        if possible and n == a + 1:
            assert found[p, a, n] == 0
        elif possible:
            expected = left_by(true, solver, p, a, n, history)
            assert found[p, a, n] == pytest.approx(expected, rel=1e-6)


def test_the_planned_damage_is_the_least_of_all_plans(few):
    true, solver = few
    weight = local_energies(coordinates(true @ true.T), solver, longest=FEW)
    left = {
        run: left_by(true, solver, *run)
        for run in itertools.product(range(FEW), range(FEW), range(FEW + 1))
        if run[0] <= run[1] < run[2] - 1
    }
    for count, (least, planned) in enumerate(shortest_paths(weight, FEW), start=1):
        costs = {}
        for rest in itertools.combinations(range(1, FEW), count - 1):
            order = (0, *rest, FEW)
            runs = zip((0, *order), order, order[1:], strict=False)
            costs[0, *rest] = sum(left[run] for run in runs if run[2] > run[1] + 1)
        assert least == pytest.approx(min(costs.values()), rel=1e-6, abs=1e-9)
        assert costs[tuple(np.flatnonzero(planned).tolist())] == pytest.approx(least, abs=1e-9)
