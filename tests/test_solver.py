"""Corrections, checked on the solvers themselves: predictions that are known, no model."""

import copy

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)

from foresight.output_plan import compile_output_plan
from foresight.plan import COMPUTE, REUSE, Plan
from foresight.policies.dynamics import Dynamics
from foresight.policies.risks import assess
from foresight.solver import euler_response, solver_response

STEPS = 12
DIFFUSION = {"beta_start": 1e-4, "beta_end": 0.02, "prediction_type": "v_prediction"}
ONE_STEP = [
    DDIMScheduler(**DIFFUSION, timestep_spacing="trailing", clip_sample=False),
    FlowMatchEulerDiscreteScheduler(shift=3.0),
]
MULTISTEP = [
    DPMSolverMultistepScheduler(**DIFFUSION),
    UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True),
]
COMPUTED = np.isin(np.arange(STEPS), (0, 1, 4, 5, 8, 11))


def ready(scheduler):
    scheduler = copy.deepcopy(scheduler)
    scheduler.set_timesteps(STEPS)
    return scheduler


def trajectory(scheduler, predictions: torch.Tensor) -> torch.Tensor:
    """Latents after every step (S, D), given what is predicted at each (S, D)."""
    scheduler, sample, seen = ready(scheduler), torch.ones_like(predictions[0]), []
    for timestep, predicted in zip(scheduler.timesteps, predictions, strict=True):
        shaped = predicted.reshape(1, 1, 1, 1, -1), sample.reshape(1, 1, 1, 1, -1)
        sample = scheduler.step(shaped[0], timestep, shaped[1], return_dict=False)[0].flatten()
        seen.append(sample)
    return torch.stack(seen)


def returned(plan: Plan, true: torch.Tensor) -> torch.Tensor:
    """What the steps of a plan return, by its definition, if the model predicts `true` (S, D)."""
    done, out = [], []
    for step in range(len(true)):
        history = [true[s] for s in reversed(done)]
        beta = float(plan.coefficients[step, 0])
        if plan.actions[step, 0] == COMPUTE:
            kappa, lam = plan.corrections[step].tolist()
            value = true[step].clone()
            if kappa:
                value = value + kappa * (true[step] - history[0])
            if lam:
                value = value - lam * (history[0] - history[1])
            done.append(step)
        else:
            value = history[0] + (beta * (history[0] - history[1]) if beta else 0)
        out.append(value)
    return torch.stack(out)


def plan_for(true: torch.Tensor, scheduler, *, corrects: bool) -> Plan:
    """The best plan for predictions (S, D) that do not react to the latents."""
    response = solver_response(ready(scheduler))
    assert response is not None
    final, nothing = torch.from_numpy(response[:, -1]), torch.zeros(STEPS, dtype=torch.float64)
    dynamics = Dynamics(torch.from_numpy(response), nothing, final, nothing)
    return assess(true @ true.T, dynamics, corrects=corrects).plan(COMPUTED, 2)


@pytest.mark.parametrize("scheduler", ONE_STEP + MULTISTEP, ids=lambda s: type(s).__name__)
def test_the_response_is_the_difference_that_a_changed_prediction_makes(scheduler):
    torch.manual_seed(0)
    predictions = torch.randn(STEPS, 3, dtype=torch.float64)
    plain = trajectory(scheduler, predictions)
    response = solver_response(ready(scheduler))
    assert response is not None
    for step in (0, 5, STEPS - 1):
        changed = predictions.clone()
        changed[step] += 0.5
        moved = (trajectory(scheduler, changed) - plain)[:, 0] / 0.5
        assert moved.numpy() == pytest.approx(response[step], rel=1e-4, abs=1e-6)


def test_solvers_that_draw_noise_are_not_corrected():
    assert solver_response(ready(EulerAncestralDiscreteScheduler())) is None


def test_the_response_of_the_plainest_solver_is_that_of_flow_matching():
    scheduler = ready(ONE_STEP[1])
    found = euler_response(scheduler.sigmas[:-1].numpy())
    assert found == pytest.approx(solver_response(scheduler), abs=1e-6)


def test_asking_for_the_response_leaves_the_scheduler_alone():
    scheduler = ready(ONE_STEP[1])
    solver_response(scheduler)
    assert scheduler.step_index is None


@pytest.mark.parametrize("scheduler", ONE_STEP, ids=lambda s: type(s).__name__)
def test_what_lies_on_a_line_between_computed_steps_is_made_good_exactly(scheduler):
    """Predictions that bend at computed steps only: forecasts miss, corrections know."""
    torch.manual_seed(1)
    knots = torch.randn(STEPS, 5, dtype=torch.float64)
    order = np.flatnonzero(COMPUTED)
    true = torch.stack(
        [
            torch.from_numpy(np.interp(np.arange(STEPS), order, knots[order, d].numpy()))
            for d in range(5)
        ],
        dim=1,
    )
    wanted = trajectory(scheduler, true)
    corrected, forecast = (
        trajectory(scheduler, returned(plan_for(true, scheduler, corrects=each), true)) - wanted
        for each in (True, False)
    )
    assert forecast[-1].norm() > 0.1
    for step in order:  # but for the little that the ridge of the corrections leaves
        assert corrected[step].norm() < 3e-3 * forecast[-1].norm()


@pytest.mark.parametrize("scheduler", ONE_STEP[1:] + MULTISTEP, ids=lambda s: type(s).__name__)
def test_smooth_predictions_come_out_less_than_half_as_far_off(scheduler):
    steps = torch.linspace(0, 2, STEPS, dtype=torch.float64)[:, None]
    true = torch.sin(steps * torch.linspace(0.5, 2.5, 40, dtype=torch.float64))
    wanted = trajectory(scheduler, true)[-1]
    off = [
        (
            trajectory(scheduler, returned(plan_for(true, scheduler, corrects=each), true))[-1]
            - wanted
        )
        for each in (True, False)
    ]
    assert off[0].norm() < off[1].norm() / 2


def random_plan(rng: np.random.Generator) -> Plan:
    computed = rng.random(9) < 0.5
    computed[0] = True
    before = np.cumsum(computed) - computed
    betas = np.where(before >= 2, rng.uniform(-1, 1, 9), 0) * (rng.random(9) < 0.7)
    correct = rng.uniform(-1, 1, (9, 2)) * computed[:, None] * (before[:, None] > [0, 1])
    correct *= rng.random((9, 2)) < 0.5
    return Plan.whole_stack(computed, betas, 1, at_output=True, corrections=correct)


def test_compiled_output_plans_mean_the_same_and_keep_nothing_in_vain():
    rng = np.random.default_rng(0)
    true = torch.eye(9, dtype=torch.float64)  # a sum of predictions shows its weights
    for _ in range(200):
        plan = random_plan(rng)
        held: list[int] = []
        read: set[tuple[int, int]] = set()
        kept: set[tuple[int, int]] = set()
        for step, operation in enumerate(compile_output_plan(plan)):
            value = operation.fresh * true[step]
            for place, weight in enumerate(operation.kept):
                value = value + weight * true[held[place]]
                read.add((held[place], step))
            if operation.action == COMPUTE:
                held = [step, *held]
            held = held[: operation.keep]
            kept |= {(source, step) for source in held}
            torch.testing.assert_close(value, returned(plan, true)[step])
        for source, step in kept:  # the last one held is read later on
            assert any(s <= source and later > step for s, later in read)


def test_a_plan_that_starts_later_corrects_only_with_what_it_has():
    betas = np.where(COMPUTED, 0, 0.5)
    betas[:2] = 0
    correct = np.where(COMPUTED[:, None], [[0.3, 0.2]], 0)
    correct[:2] = 0
    plan = Plan.whole_stack(COMPUTED, betas, 1, at_output=True, corrections=correct)
    later = plan.restarted(1)
    assert later.actions[:4, 0].tolist() == [COMPUTE, REUSE, REUSE, COMPUTE]
    assert later.corrections[3].tolist() == pytest.approx([0.3, 0])
    assert later.corrections[4].tolist() == pytest.approx([0.3, 0.2])
    assert (plan.restarted(0).corrections == plan.corrections).all()


@pytest.mark.parametrize(
    ("step", "correction", "at_output"),
    [(0, (0.5, 0), True), (1, (0.5, 0.5), True), (2, (0.5, 0), True), (4, (0.5, 0), False)],
)
def test_corrections_that_cannot_be_are_refused(step, correction, at_output):
    correct = np.zeros((STEPS, 2))
    correct[step] = correction
    with pytest.raises(ValueError, match=f"step {step} cannot be corrected"):
        Plan.whole_stack(COMPUTED, np.zeros(STEPS), 2, at_output=at_output, corrections=correct)
