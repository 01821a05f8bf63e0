"""Solvers, checked on the schedulers themselves: predictions that are known, no model."""

import numpy as np
import pytest
import torch
from diffusers import EulerAncestralDiscreteScheduler, EulerDiscreteScheduler
from solvers_by_hand import (
    MULTISTEP,
    ONE_STEP,
    SOLVER_STEPS,
    known_solver,
    latents_along,
    precision,
    ready,
)

from foresight.solver import euler_solver, solver_of

ON_ALL = pytest.mark.parametrize("scheduler", ONE_STEP + MULTISTEP, ids=lambda s: type(s).__name__)


@ON_ALL
@pytest.mark.parametrize("steps", [1, 2, SOLVER_STEPS])
def test_latents_are_what_the_solver_makes_of_first_latents_and_predictions(scheduler, steps):
    torch.manual_seed(0)
    predictions = torch.randn(steps, 5, dtype=torch.float64)
    first = torch.randn(5, dtype=torch.float64)
    seen = latents_along(scheduler, first, lambda step, _: predictions[step], steps)
    solver = known_solver(scheduler, steps)
    assert solver.known
    assert (np.tril(solver.response, -1) == 0).all()
    expected = solver.decay[:, None] * first.numpy() + solver.response.T @ predictions.numpy()
    scale = float(seen.abs().max())
    assert seen[1:].numpy() == pytest.approx(expected, abs=precision(scheduler) * scale)


@ON_ALL
def test_the_response_is_the_difference_that_a_changed_prediction_makes(scheduler):
    torch.manual_seed(0)
    predictions = torch.randn(SOLVER_STEPS, 3, dtype=torch.float64)
    first = torch.ones(3, dtype=torch.float64)
    plain = latents_along(scheduler, first, lambda step, _: predictions[step])
    response = known_solver(scheduler).response
    for hit in (0, 5, SOLVER_STEPS - 1):
        changed = predictions.clone()
        changed[hit] += 0.5
        seen = latents_along(scheduler, first, lambda step, _, changed=changed: changed[step])
        moved = (seen - plain)[1:, 0] / 0.5
        assert moved.numpy() == pytest.approx(response[hit], rel=1e-4, abs=1e-6)


@ON_ALL
def test_the_decay_is_the_difference_that_other_first_latents_make(scheduler):
    torch.manual_seed(0)
    predictions = torch.randn(SOLVER_STEPS, 3, dtype=torch.float64)
    one, other = (
        latents_along(scheduler, first * torch.ones(3).double(), lambda step, _: predictions[step])
        for first in (-1.0, 1.0)
    )
    decay = known_solver(scheduler).decay
    assert ((other - one)[1:, 0] / 2).numpy() == pytest.approx(decay, rel=1e-4, abs=1e-6)
    assert abs(decay[0]) > 0.5


def test_first_latents_are_left_out_where_the_model_sees_scaled_ones():
    """The response stays: it is about predictions alone."""
    scheduler = EulerDiscreteScheduler(prediction_type="epsilon")
    solver = solver_of(ready(scheduler))
    assert solver is not None
    assert solver.known
    assert not solver.decay.any()
    sigmas = ready(scheduler).sigmas.double().numpy()
    steps = np.diff(sigmas)[:, None].repeat(SOLVER_STEPS, axis=1)  # x += v * (sigma' - sigma)
    assert solver.response == pytest.approx(np.triu(steps), rel=1e-5, abs=1e-5)


def test_solvers_that_draw_noise_are_not_known():
    assert solver_of(ready(EulerAncestralDiscreteScheduler())) is None


def test_solvers_that_pay_a_prediction_no_heed_are_not_known():
    class Deaf(type(ONE_STEP[1])):
        def step(self, model_output, timestep, sample, **others):
            heard = model_output * (self.step_index != 4)
            return super().step(heard, timestep, sample, **others)

    assert solver_of(ready(Deaf(shift=3.0))) is None


def test_the_plainest_solver_is_flow_matching_without_its_first_latents():
    scheduler = ready(ONE_STEP[1])
    found, real = euler_solver(scheduler.sigmas[:-1].numpy()), solver_of(scheduler)
    assert real is not None
    assert found.response == pytest.approx(real.response, abs=1e-6)
    assert real.decay == pytest.approx(np.ones(SOLVER_STEPS))
    assert not found.decay.any()
    assert not found.known


def test_asking_leaves_the_scheduler_alone():
    scheduler = ready(ONE_STEP[1])
    solver_of(scheduler)
    assert scheduler.step_index is None


def test_step_counts_and_settings_are_not_mixed_up():
    """Answers are remembered; another schedule is asked anew."""
    scheduler = ONE_STEP[1]
    other = type(scheduler)(shift=7.0)
    found = [known_solver(*each).response for each in ((scheduler, 6), (scheduler, 7), (other, 6))]
    assert [len(each) for each in found] == [6, 7, 6]
    for (asked, steps), response in zip(
        ((scheduler, 6), (scheduler, 7), (other, 6)), found, strict=True
    ):
        sizes = np.diff(ready(asked, steps).sigmas.double().numpy())
        assert np.diagonal(response) == pytest.approx(sizes, abs=1e-6)
