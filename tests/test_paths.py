"""What predictions to expect on average: which profiled schedule tells, and the mean of many."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch

from foresight.policies.paths import MeanPaths
from foresight.policies.reaction import Reaction
from foresight.policies.trajectory import resampled
from foresight.solver import Solver, euler_solver
from policy_training.generations import Bucket
from policy_training.paths import mean_gram, profiled_schedules, trust_in_pace

STEPS, SCALES = (8, 20), (2.0, 4.0, 7.0)


def schedule(steps: int) -> np.ndarray:
    return np.linspace(0.98, 0.05, steps)


def flow_solver(sigmas: np.ndarray) -> Solver:
    return euler_solver(sigmas)._replace(decay=np.ones(len(sigmas)), known=True)


def reaction(steps: int) -> Reaction:
    return Reaction(np.linspace(-0.5, 0.8, steps), np.full(steps, 0.5))


def gram(vectors: np.ndarray) -> np.ndarray:
    return vectors @ vectors.swapaxes(-1, -2)


@pytest.fixture
def grams(rng) -> dict[tuple[int, float], np.ndarray]:
    """Of outputs that wander, for every profiled number of steps and guidance scale."""
    every = itertools.product(STEPS, SCALES)
    return {key: gram(rng.normal(size=(key[0], 30)).cumsum(axis=0)) for key in every}


def mean_paths(grams: dict[tuple[int, float], np.ndarray]) -> MeanPaths:
    paths = MeanPaths([steps for steps, _ in grams])
    for path, ((steps, scale), known) in zip(paths, grams.items(), strict=True):
        path.fit(schedule(steps), known, flow_solver(schedule(steps)), scale)
    return paths


def found(paths: MeanPaths, steps: int, guidance: float) -> np.ndarray:
    """Inner products that are expected along the schedule of so many steps."""
    sigmas = schedule(steps)
    return gram(paths.at(sigmas, flow_solver(sigmas), guidance, reaction(steps)))


def near(expected: np.ndarray):
    return pytest.approx(expected, rel=1e-6, abs=1e-6 * np.abs(expected).max())


def test_what_was_profiled_is_expected_where_it_was(grams):
    paths = mean_paths(grams)
    for key, known in grams.items():
        assert found(paths, *key) == near(known)


@pytest.mark.parametrize("known", [True, False])
def test_whatever_the_solver_did(grams, known):
    """Also one that is not flow matching's, or that could not be asked."""
    paths = MeanPaths([8])
    sigmas = schedule(8)
    solver = Solver(np.triu(np.ones((8, 8))), np.linspace(0.9, 0, 8), known)
    paths[0].fit(sigmas, grams[8, 4.0], solver, 4.0)
    assert gram(paths.at(sigmas, solver, 4.0, reaction(8))) == near(grams[8, 4.0])


@pytest.mark.parametrize(("guidance", "lower", "share"), [(2.5, 2.0, 0.25), (6.0, 4.0, 2 / 3)])
def test_inner_products_are_linear_between_the_nearest_guidance_scales(
    grams, guidance, lower, share
):
    upper = SCALES[SCALES.index(lower) + 1]
    for steps in STEPS:
        expected = (1 - share) * grams[steps, lower] + share * grams[steps, upper]
        assert found(mean_paths(grams), steps, guidance) == near(expected)


def test_beyond_all_guidance_scales_the_last_one_s_is_expected(grams):
    paths = mean_paths(grams)
    for guidance, end in ((0.0, 2.0), (1.0, 2.0), (30.0, 7.0)):
        assert found(paths, 8, guidance) == near(grams[8, end])


@pytest.mark.parametrize("steps", [4, 7, 9, 17, 50])
def test_other_schedules_are_expected_by_the_one_of_most_steps(grams, steps):
    """Also by one of many more steps than were asked for, where another has nearly as many."""
    fine, sigmas = schedule(20), schedule(steps)
    solvers = flow_solver(fine), sigmas, flow_solver(sigmas)
    expected = gram(resampled(grams[20, 4.0], fine, *solvers, reaction(steps)))
    assert found(mean_paths(grams), steps, 4.0) == near(expected)


def test_each_guidance_scale_has_its_own_schedules(grams):
    """Between two, where 8 steps were profiled at one of them only."""
    few = {key: grams[key] for key in ((8, 4.0), (20, 4.0), (20, 7.0))}
    paths, fine, sigmas = mean_paths(few), schedule(20), schedule(8)
    solvers = flow_solver(fine), sigmas, flow_solver(sigmas)
    strong = gram(resampled(grams[20, 7.0], fine, *solvers, reaction(8)))
    assert found(paths, 8, 5.5) == near((grams[8, 4.0] + strong) / 2)


def test_the_order_of_what_was_profiled_does_not_matter(grams):
    turned = dict(reversed(grams.items()))
    for steps, guidance in ((8, 3.0), (12, 7.0), (15, 9.0)):
        expected = found(mean_paths(grams), steps, guidance)
        assert found(mean_paths(turned), steps, guidance) == near(expected)


def test_paths_are_kept_with_the_weights(grams):
    """In buffers, so that a policy folder has them."""
    paths, empty = mean_paths(grams), MeanPaths([steps for steps, _ in grams])
    empty.load_state_dict(paths.state_dict())
    assert found(empty, 12, 5.0) == near(found(paths, 12, 5.0))


# The mean of many generations.


def test_one_generation_alone_is_the_mean(rng):
    alone = gram(rng.normal(size=(1, 5, 3)))
    assert mean_gram(alone) == pytest.approx(alone[0])


def test_a_generation_that_moves_most_does_not_decide_alone():
    """Its 49 + 1 are a hundred times 0.25 + 0.25, so its weight is a hundredth."""
    slow = np.array([[3.0, 0, 0], [3.5, 0, 0], [4, 0, 0]])
    fast = np.array([[0, 0.0, 0], [0, 7, 0], [0, 7, 1]])
    found = mean_gram(np.stack([gram(slow), gram(fast)]))
    expected = (gram(slow) + gram(fast) / 100) / 1.01
    assert found == pytest.approx(expected)
    moved = np.diff(np.diff(found, axis=0), axis=1).diagonal()
    assert moved == pytest.approx(np.array([0.25 + 0.49, 0.25 + 0.01]) / 1.01)


def test_a_generation_that_stands_still_counts_as_one_that_hardly_moves():
    still, moving = np.ones((3, 3)), gram(np.array([[0.0], [1.0], [2.0]]))
    found = mean_gram(np.stack([still, moving]))
    assert np.isfinite(found).all()
    assert found == pytest.approx(still, abs=1e-5)


def bucket(steps: int, scales: list[float], rng: np.random.Generator) -> Bucket:
    """Generations of one schedule, two entities each."""
    sigmas, count = schedule(steps), len(scales)
    nothing = torch.zeros(count, 1)
    return Bucket(
        gram=torch.from_numpy(gram(rng.normal(size=(count, 2, steps, 40)))).float(),
        sigmas=torch.from_numpy(sigmas).float().repeat(count, 1),
        solvers=[flow_solver(sigmas)] * count,
        guidance_scales=scales,
        embedding=nothing,
        features=nothing,
        rollouts=[[]] * count,
    )


def test_every_number_of_steps_and_guidance_scale_has_its_own_mean(rng):
    """Of the outputs, which come first."""
    few, many = bucket(5, [7.0, 4.0, 7.0], rng), bucket(9, [4.0, 4.0], rng)
    expected = [(few, 4.0, [1]), (few, 7.0, [0, 2]), (many, 4.0, [0, 1])]
    schedules = profiled_schedules([few, many])
    assert len(schedules) == len(expected)
    for told, (of, scale, members) in zip(schedules, expected, strict=True):
        assert told.guidance_scale == scale
        assert told.sigmas == pytest.approx(of.sigmas[0].numpy())
        assert told.gram == pytest.approx(mean_gram(of.gram[members, 0].double().numpy()))
        assert told.solver is of.solvers[0]


# How far the network is believed about a prompt.


class Foreteller:
    """Expects every generation to move along one path, but by a factor of what it really did."""

    def __init__(self, outputs: np.ndarray, usual: np.ndarray, factor: float) -> None:
        self._usual = usual
        moved = np.square(np.diff(outputs, axis=1)).sum(axis=2)
        paces = factor * np.log(moved / np.square(np.diff(usual, axis=0)).sum(axis=1))
        self._paces = dict(enumerate(np.pad(paces, ((0, 0), (1, 0)))))

    def path(self, sigmas, solver, guidance_scale) -> np.ndarray:
        return self._usual

    def log_pace(self, sigmas, prompt, features) -> torch.Tensor:
        return torch.from_numpy(self._paces[int(prompt)])


@pytest.mark.parametrize(
    ("factor", "trust"), [(1.0, 1.0), (2.0, 0.5), (0.5, 1.0), (-1.0, 0.0), (0.0, 0.0)]
)
def test_a_pace_is_trusted_by_as_much_as_held_on_other_prompts(rng, factor, trust):
    outputs = rng.normal(size=(3, 9, 40)).cumsum(axis=1)
    held_out = dataclasses.replace(
        bucket(9, [4.0, 4.0, 7.0], rng),
        gram=torch.from_numpy(gram(outputs[:, None])),
        embedding=torch.arange(3.0)[:, None],
    )
    foreteller = Foreteller(outputs, rng.normal(size=(9, 5)), factor)
    assert trust_in_pace(foreteller, [held_out]) == pytest.approx(trust, abs=1e-6)
