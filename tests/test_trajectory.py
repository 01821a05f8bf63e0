"""Predictions at other step counts, against real runs of a model that is affine in its latents."""

import numpy as np
import pytest
import torch
from solvers_by_hand import MULTISTEP, ONE_STEP, known_solver, latents_along, ready

from foresight.policies.reaction import Reaction
from foresight.policies.trajectory import resampled
from foresight.solver import euler_solver

DDIM, FLOW = ONE_STEP
FINE, WIDTH = 50, 30


def sigmas_of(scheduler, steps: int) -> np.ndarray:
    return ready(scheduler, steps).sigmas[:-1].double().numpy()


def coherent_at(sigmas: np.ndarray) -> np.ndarray:
    """A model that corrects at high noise, and drives errors on at low noise."""
    return 1.5 * (np.asarray(sigmas) - 0.4)


def predictions(scheduler, steps: int) -> np.ndarray:
    """(S, D) of a model `u(sigma) + coherent(sigma) * x` in a real run."""
    torch.manual_seed(0)
    parts = torch.randn(4, WIDTH, dtype=torch.float64)
    first = torch.randn(WIDTH, dtype=torch.float64)
    sigmas, seen = sigmas_of(scheduler, steps), []

    def predict(step: int, latents: torch.Tensor) -> torch.Tensor:
        sigma = sigmas[step]
        turn = [1, sigma, np.sin(4 * sigma), np.cos(7 * sigma)]
        value = sum(weight * part for weight, part in zip(turn, parts, strict=True))
        seen.append(value + float(coherent_at(sigma)) * latents)
        return seen[-1]

    latents_along(scheduler, first, predict, steps)
    return torch.stack(seen).numpy()


def interpolated(vectors: np.ndarray, grid: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    columns = [np.interp(wanted[::-1], grid[::-1], column[::-1])[::-1] for column in vectors.T]
    return np.stack(columns, axis=1)


def resample(scheduler, steps: int, reaction: Reaction, fine: int = FINE) -> np.ndarray:
    """The Gram matrix to be expected of a run, from one of many steps."""
    known = predictions(scheduler, fine)
    found = resampled(
        known @ known.T,
        sigmas_of(scheduler, fine),
        known_solver(scheduler, fine),
        sigmas_of(scheduler, steps),
        known_solver(scheduler, steps),
        reaction,
    )
    return found @ found.T


def reaction_at(scheduler, steps: int, rest: float = 0.0) -> Reaction:
    return Reaction(coherent_at(sigmas_of(scheduler, steps)), np.full(steps, rest))


@pytest.mark.parametrize("rest", [0.0, 0.7])
def test_the_same_schedule_has_the_same_inner_products(rest):
    known = predictions(FLOW, FINE)
    found = resample(FLOW, FINE, reaction_at(FLOW, FINE, rest))
    assert found == pytest.approx(known @ known.T, rel=1e-4, abs=1e-4 * np.square(known[0]).sum())


def distances(gram: np.ndarray) -> np.ndarray:
    """Squared, of predictions from one another: what plans live on."""
    own = np.diag(gram)
    return own[:, None] + own - 2 * gram


@pytest.mark.parametrize("steps", [8, 20])
@pytest.mark.parametrize(("fine", "share"), [(50, 0.25), (400, 1e-4)])
def test_fewer_steps_are_foreseen_better_than_by_interpolation(steps, fine, share):
    """What the solver's own error makes of the predictions; what is left is the grid's."""
    true, known = predictions(FLOW, steps), predictions(FLOW, fine)
    plain = interpolated(known, sigmas_of(FLOW, fine), sigmas_of(FLOW, steps))
    found = resample(FLOW, steps, reaction_at(FLOW, steps), fine)
    for measure in (lambda gram: gram, distances):
        truth = measure(true @ true.T)
        off = np.linalg.norm(measure(found) - truth)
        assert off < share * np.linalg.norm(measure(plain @ plain.T) - truth)


def test_what_is_not_coherent_adds_energy_to_each_step():
    """At the second step of the error that the solver made; later ones answer also that."""
    steps = 10
    with_it, without = (
        resample(FLOW, steps, Reaction(*np.outer(sizes, np.ones(steps))))
        for sizes in ([0, 0.6], [0, 0])
    )
    known = predictions(FLOW, FINE)
    plain = interpolated(known, sigmas_of(FLOW, FINE), sigmas_of(FLOW, steps))
    assert without == pytest.approx(plain @ plain.T, abs=1e-4)
    added = np.diag(with_it - without)
    assert added[0] == pytest.approx(0, abs=1e-4)
    sigmas, latents = sigmas_of(FLOW, steps), known_solver(FLOW, FINE).response.T @ known
    latents = np.concatenate([np.zeros((1, WIDTH)), latents])
    grid = np.append(sigmas_of(FLOW, FINE), 0.0)
    missed = (sigmas[1] - sigmas[0]) * plain[0] - interpolated(latents, grid, sigmas)[1]
    assert added[1] == pytest.approx(0.6**2 * np.square(missed).sum(), rel=1e-3)


@pytest.mark.parametrize("steps", [8, 20])
def test_inner_products_are_means_over_two_models_that_answer_more_and_less(steps):
    """Each of which does so in all directions."""
    coherent, spread = coherent_at(sigmas_of(FLOW, steps)), np.linspace(0.2, 0.6, steps)
    found = resample(FLOW, steps, Reaction(coherent, spread))
    more, less = (
        resample(FLOW, steps, Reaction(coherent + sign * spread, np.zeros(steps)))
        for sign in (1, -1)
    )
    assert found == pytest.approx((more + less) / 2, rel=1e-6, abs=1e-5)
    assert np.abs(more - less).max() > 0.1


@pytest.mark.parametrize("scheduler", [DDIM, *MULTISTEP[:1]], ids=lambda each: type(each).__name__)
def test_solvers_that_lose_the_first_latents_are_interpolated(scheduler):
    rng = np.random.default_rng(0)
    grid, wanted = np.linspace(0.99, 0.05, 30), np.linspace(0.9, 0.1, 12)
    known = rng.normal(size=(30, WIDTH)).cumsum(axis=0)
    fine, solver = known_solver(scheduler, 30), known_solver(scheduler, 12)
    reaction = Reaction(*np.full((2, 12), 0.5))
    expected = interpolated(known, grid, wanted)
    unknown = euler_solver(wanted)
    for pair in ((fine, solver), (euler_solver(grid), unknown)):
        found = resampled(known @ known.T, grid, pair[0], wanted, pair[1], reaction)
        assert found @ found.T == pytest.approx(expected @ expected.T, rel=1e-5, abs=1e-5)


def test_levels_beyond_the_known_ones_are_those_at_the_ends():
    rng = np.random.default_rng(0)
    known, grid = rng.normal(size=(6, 9)), np.linspace(0.9, 0.2, 6)
    wanted = np.array([0.99, 0.9, 0.2, 0.01])
    solvers = euler_solver(grid), euler_solver(wanted)
    reaction = Reaction(*np.zeros((2, 4)))
    found = resampled(known @ known.T, grid, solvers[0], wanted, solvers[1], reaction)
    expected = known[[0, 0, -1, -1]]
    assert found @ found.T == pytest.approx(expected @ expected.T, abs=1e-6)


def test_a_straight_trajectory_stays_one_at_any_step_count():
    """Also below the last known level: no solver errs there, and so the model answers nothing."""
    for steps in (5, 20, 80):
        sigmas, grid = sigmas_of(FLOW, steps), sigmas_of(FLOW, 20)
        solvers = known_solver(FLOW, 20), known_solver(FLOW, steps)
        reaction = Reaction(*np.full((2, steps), 0.8))
        found = resampled(np.ones((20, 20)), grid, solvers[0], sigmas, solvers[1], reaction)
        assert found @ found.T == pytest.approx(np.ones((steps, steps)), abs=1e-5)
