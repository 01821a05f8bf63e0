"""The generation clock under the solvers that video pipelines run."""

import copy

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    HeunDiscreteScheduler,
    UniPCMultistepScheduler,
)
from families import FAMILIES

import foresight
from foresight.clock import Clock, noise_levels
from foresight.plan import COMPUTE, Plan
from foresight.policies.fixed import FixedPlan

STEPS = 6
DIFFUSION = {"beta_start": 1e-4, "beta_end": 0.02, "prediction_type": "v_prediction"}
FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
ON_LATTE = [
    DDIMScheduler(**DIFFUSION, timestep_spacing="trailing", clip_sample=False),
    DPMSolverMultistepScheduler(**DIFFUSION, timestep_spacing="trailing"),
    UniPCMultistepScheduler(**DIFFUSION, timestep_spacing="trailing"),
    HeunDiscreteScheduler(**DIFFUSION, timestep_spacing="trailing"),
]
ON_WAN = [
    UniPCMultistepScheduler(**FLOW),
    DPMSolverMultistepScheduler(**FLOW),
    FlowMatchEulerDiscreteScheduler(shift=3.0),
    FlowMatchHeunDiscreteScheduler(shift=3.0),
]
CASES = [
    *(pytest.param("Latte", s, id=f"Latte {type(s).__name__}") for s in ON_LATTE),
    *(pytest.param("Wan 2.1", s, id=f"Wan {type(s).__name__}") for s in ON_WAN),
]


def evaluations(scheduler) -> int:
    """Model evaluations in a generation of STEPS steps; Heun corrects all but the last."""
    return 2 * STEPS - 1 if "Heun" in type(scheduler).__name__ else STEPS


@pytest.mark.parametrize(("name", "scheduler"), CASES)
def test_every_evaluation_is_a_step_of_the_plan(name, scheduler):
    family = FAMILIES[name]
    pipe = family.build()
    pipe.scheduler = scheduler
    count, width = evaluations(scheduler), len(family.blocks)
    untouched = family.run(pipe)
    with foresight.reuse(pipe, "none") as session:
        assert torch.equal(family.run(pipe), untouched)
    assert session.report().actions.shape == (count, width)
    assert session.clock.step == count
    assert torch.equal(family.run(pipe), untouched)

    computed = np.arange(count) % 3 != 2
    plan = Plan.whole_stack(computed, np.zeros(count), width)
    ran = []
    first = pipe.transformer.get_submodule(family.blocks[0])
    original = first.forward
    first.forward = lambda *a, **k: ran.append(clock.step) or original(*a, **k)
    with foresight.reuse(pipe, FixedPlan(plan)) as session:
        clock = session.clock
        family.run(pipe)
    assert (session.report().actions == plan.actions).all()
    assert sorted(set(ran)) == np.flatnonzero(plan.actions[:, 0] == COMPUTE).tolist()


@pytest.mark.parametrize("scheduler", ON_LATTE, ids=lambda s: type(s).__name__)
def test_noise_shares_of_diffusion_schedulers_are_those_of_the_process(scheduler):
    """From the betas themselves; Karras sigmas and products of alphas are one quantity."""
    scheduler = copy.deepcopy(scheduler)
    scheduler.set_timesteps(STEPS)
    timesteps, sigmas = noise_levels(scheduler)
    kept = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))[np.round(timesteps).astype(int)]
    expected = np.sqrt(1 - kept) / (np.sqrt(kept) + np.sqrt(1 - kept))
    assert sigmas == pytest.approx(expected, rel=2e-3)
    assert len(sigmas) == evaluations(scheduler)


@pytest.mark.parametrize("scheduler", ON_WAN, ids=lambda s: type(s).__name__)
def test_noise_shares_of_flow_schedulers_are_their_sigmas(scheduler):
    scheduler = copy.deepcopy(scheduler)
    scheduler.set_timesteps(STEPS)
    timesteps, sigmas = noise_levels(scheduler)
    assert sigmas == pytest.approx(timesteps / 1000, abs=2e-3)
    assert len(sigmas) == evaluations(scheduler)


def test_inverted_and_karras_sigmas_become_noise_shares():
    mochi = FlowMatchEulerDiscreteScheduler(invert_sigmas=True)
    mochi.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25])
    assert noise_levels(mochi)[1] == pytest.approx([1.0, 0.75, 0.5, 0.25])
    cosmos = FAMILIES["Cosmos 1"].build().scheduler
    cosmos.set_timesteps(5)
    assert noise_levels(cosmos)[1] == pytest.approx(
        cosmos.sigmas[:5].numpy() / (1 + cosmos.sigmas[:5].numpy())
    )
    assert noise_levels(cosmos)[1].max() < 1


def test_a_copy_of_the_watched_scheduler_steps_itself_and_is_not_counted():
    starts = []
    scheduler = UniPCMultistepScheduler(**FLOW)
    clock = Clock(scheduler, lambda: starts.append(1))
    clock.attach()
    scheduler.set_timesteps(STEPS)
    twin = copy.deepcopy(scheduler)
    sample = torch.ones(1, 4)
    for timestep in scheduler.timesteps[:2]:
        scheduler.step(sample, timestep, sample)
    assert (clock.step, twin.step_index) == (2, None)
    twin.set_timesteps(STEPS)
    twin.step(sample, twin.timesteps[0], sample)
    assert (clock.step, scheduler.step_index, twin.step_index, len(starts)) == (2, 2, 1, 1)
    clock.detach()
    assert type(scheduler) is UniPCMultistepScheduler
