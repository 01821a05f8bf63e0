"""Risks of all runs of a generation, against the definition run by run."""

import itertools

import numpy as np
import pytest
import torch

from foresight.plan import COMPUTE
from foresight.planner import shortest_path
from foresight.policies.dynamics import Dynamics, ErrorDynamics, Runs, run_energies
from foresight.policies.risks import assess, forecast_coefficients
from foresight.solver import euler_response

STEPS, LONGEST = 8, 4


@pytest.fixture
def vectors(rng) -> np.ndarray:
    """Predictions (S, d) that wander."""
    return rng.normal(size=(STEPS, 20)).cumsum(axis=0)


@pytest.fixture
def gram(vectors) -> torch.Tensor:
    return torch.from_numpy(vectors @ vectors.T)


@pytest.fixture
def dynamics() -> Dynamics:
    """Of a model that reacts, and of corrections that are not quite sure."""
    torch.manual_seed(0)
    learned = ErrorDynamics().requires_grad_(False)
    learned.reaction.normal_(std=0.5)
    sigmas = np.linspace(0.95, 0.1, STEPS)
    return learned(torch.from_numpy(sigmas), torch.from_numpy(euler_response(sigmas)))


def least_squares(vectors: np.ndarray, previous: int, latest: int, step: int) -> float:
    """The forecast's coefficient, 0 where there are not two computed steps."""
    if previous == latest:
        return 0.0
    slope = vectors[latest] - vectors[previous]
    found = np.linalg.lstsq(slope[:, None], vectors[step] - vectors[latest], rcond=None)[0]
    return float(found[0].clip(-1, 8))


def triples(computed: tuple[int, ...]):
    """The step computed before the last, the last and the next, along computed steps."""
    return zip((0, *computed), computed, (*computed[1:], STEPS), strict=False)


def energy(vectors, gram, dynamics, previous: int, latest: int, following: int) -> float:
    """What one run leaves at its best, with nothing else assessed."""
    inside = range(latest + 1, following)
    if not inside:
        return 0.0
    betas = [least_squares(vectors, previous, latest, step) for step in inside]
    places = [torch.tensor([step]) for step in (previous, latest, following, 0)]
    run = Runs(*places, torch.tensor([betas], dtype=torch.float64))
    return run_energies(run, gram[None], dynamics)[0].item()


def test_forecasts_are_least_squares(vectors, gram):
    runs = [(p, a) for a in range(STEPS - 1) for p in range(max(a, 1))]
    previous, latest = torch.tensor(runs).unbind(1)
    found = forecast_coefficients(gram, previous, latest, STEPS)
    for row, (p, a) in enumerate(runs):
        for step in range(a + 1, STEPS):
            expected = least_squares(vectors, p, a, step)
            assert found[row, step - a - 1] == pytest.approx(expected, rel=1e-9)


def test_damage_is_finite_where_a_run_is_possible_and_nothing_where_nothing_is_skipped(
    vectors, gram, dynamics
):
    damage = assess(gram, dynamics, longest=LONGEST).damage
    assert damage.shape == (STEPS, STEPS, STEPS + 1)
    for p, a, n in np.ndindex(damage.shape):
        known = p == a == 0 or 0 < a - p <= LONGEST + 1
        possible = known and 0 <= n - a - 1 <= LONGEST
        assert np.isfinite(damage[p, a, n]) == possible
        if possible:
            assert damage[p, a, n] == pytest.approx(energy(vectors, gram, dynamics, p, a, n))


def test_without_corrections_the_damage_is_never_less(gram, dynamics):
    with_them = assess(gram, dynamics)
    without = assess(gram, dynamics, corrects=False)
    assert not without.corrections.any()
    skipped = np.isfinite(without.damage[:, :, :STEPS])
    more = without.damage[:, :, :STEPS][skipped] - with_them.damage[:, :, :STEPS][skipped]
    assert (more >= 0).all()
    assert (more > 0).sum() > skipped.sum() / 2
    assert (with_them.damage[:, :, STEPS] == without.damage[:, :, STEPS]).all()


def test_forecasts_may_be_others(gram, dynamics):
    """Reuse throughout: a run costs what it does with coefficients of 0."""
    risks = assess(gram, dynamics, forecasts=lambda *asked: 0 * forecast_coefficients(*asked))
    assert not risks.coefficients.any()
    places = [torch.tensor([step]) for step in (2, 3, 6, 0)]
    expected, _ = run_energies(Runs(*places, torch.zeros(1, 2)), gram[None], dynamics)
    assert risks.damage[2, 3, 6] == pytest.approx(expected.item())


def test_a_plan_takes_the_coefficients_and_corrections_of_its_runs(vectors, gram, dynamics):
    risks = assess(gram, dynamics, longest=LONGEST)
    computed = np.isin(np.arange(STEPS), (0, 2, 4, 5))  # runs of 1, 1 and 2; the last is left
    plan = risks.plan(computed, num_blocks=3)
    assert plan.at_output
    assert plan.shape == (STEPS, 3)
    assert (plan.actions == COMPUTE).tolist() == np.repeat(computed[:, None], 3, 1).tolist()
    expected = np.zeros(STEPS)
    for step, previous, latest in ((3, 0, 2), (6, 4, 5), (7, 4, 5)):
        expected[step] = least_squares(vectors, previous, latest, step)
    assert plan.coefficients[:, 1] == pytest.approx(expected, rel=1e-6)
    made = np.zeros((STEPS, 2))
    for previous, latest, following in ((0, 0, 2), (0, 2, 4)):
        made[following] = risks.corrections[risks.rows[previous, latest, following]]
        assert made[following, 0] != 0
    assert plan.corrections == pytest.approx(made, rel=1e-6)

    strengths = np.linspace(0.1, 1.5, STEPS)
    weaker = risks.plan(computed, num_blocks=3, strengths=strengths)
    assert (weaker.actions == plan.actions).all()
    assert (weaker.coefficients == plan.coefficients).all()
    assert weaker.corrections == pytest.approx(strengths[:, None] * made, rel=1e-6)


@pytest.mark.parametrize("power", [0.5, 1.0, 1.7])
def test_the_planned_damage_is_the_least_of_all_plans(vectors, gram, dynamics, power):
    weight = assess(gram, dynamics, longest=STEPS).damage ** power
    for count in range(1, STEPS + 1):
        costs = {}
        for rest in itertools.combinations(range(1, STEPS), count - 1):
            runs = triples((0, *rest))
            costs[0, *rest] = sum(energy(vectors, gram, dynamics, *run) ** power for run in runs)
        planned = tuple(np.flatnonzero(shortest_path(weight, count)).tolist())
        assert costs[planned] == pytest.approx(min(costs.values()), rel=1e-9)
