"""What a run of skipped steps leaves, against generations that really skip it.

The model is linear, so that everything the theory says of it must hold exactly: it predicts what it
does in the uncached generation, and answers latents that are off by a number per step.
"""

import copy

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)

from foresight.policies.dynamics import Dynamics, ErrorDynamics, Runs, propagate, run_energies
from foresight.solver import solver_response

STEPS = 12
WIDTH = 6
DIFFUSION = {"beta_start": 1e-4, "beta_end": 0.02, "prediction_type": "v_prediction"}
SCHEDULERS = [
    DDIMScheduler(**DIFFUSION, timestep_spacing="trailing", clip_sample=False),
    FlowMatchEulerDiscreteScheduler(shift=3.0),
    DPMSolverMultistepScheduler(**DIFFUSION),
    UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True),
]
ON_ALL = pytest.mark.parametrize("scheduler", SCHEDULERS, ids=lambda s: type(s).__name__)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def ready(scheduler):
    scheduler = copy.deepcopy(scheduler)
    scheduler.set_timesteps(STEPS)
    return scheduler


def generate(scheduler, predict) -> torch.Tensor:
    """Latents (S + 1, D) before and after every step; `predict(step, latents)` is the model."""
    scheduler = ready(scheduler)
    seen = [torch.zeros(WIDTH, dtype=torch.float64)]
    for step, timestep in enumerate(scheduler.timesteps):
        sample = seen[-1].reshape(1, 1, 1, 1, -1)
        predicted = predict(step, seen[-1]).reshape(sample.shape)
        seen.append(scheduler.step(predicted, timestep, sample, return_dict=False)[0].flatten())
    return torch.stack(seen)


def response_of(scheduler) -> torch.Tensor:
    response = solver_response(ready(scheduler))
    assert response is not None
    return torch.from_numpy(response)


def random_reaction() -> torch.Tensor:
    return -1.5 * torch.rand(STEPS, dtype=torch.float64)


def exact(response: torch.Tensor, reaction: torch.Tensor) -> Dynamics:
    """Of a model whose answer is known for certain."""
    final = propagate(response, reaction)[:, -1]
    return Dynamics(response, reaction, final, torch.zeros_like(final))


def one_run(previous: int, latest: int, following: int, betas: torch.Tensor) -> Runs:
    places = [torch.tensor([step]) for step in (previous, latest, following, 0)]
    return Runs(*places, betas[None])


@ON_ALL
def test_a_unit_put_into_a_prediction_moves_the_latents_as_propagate_says(scheduler):
    reaction, constant = random_reaction(), torch.randn(STEPS, WIDTH, dtype=torch.float64)
    moved = propagate(response_of(scheduler), reaction)

    def latents(hit: int | None) -> torch.Tensor:
        return generate(
            scheduler, lambda step, x: reaction[step] * x + constant[step] + (step == hit)
        )

    plain = latents(None)
    for hit in (0, 4, STEPS - 1):
        difference = latents(hit) - plain
        expected = torch.cat([torch.zeros(1), moved[hit]])[:, None].expand_as(difference)
        torch.testing.assert_close(difference, expected, rtol=1e-5, atol=2e-6)


RUNS = {
    "first run": (0, 0, 3),
    "one step": (2, 4, 6),
    "far before": (1, 5, 9),
    "short of the end": (3, 4, 11),
    "to the end": (6, 8, STEPS),
}


@ON_ALL
@pytest.mark.parametrize(("previous", "latest", "following"), RUNS.values(), ids=RUNS)
def test_the_energy_of_a_run_is_what_a_generation_that_skips_it_is_off(
    scheduler, previous, latest, following
):
    true = torch.randn(STEPS, WIDTH, dtype=torch.float64)  # predictions of the uncached generation
    reaction = random_reaction()
    betas = torch.rand(following - latest - 1, dtype=torch.float64) * (previous < latest)
    kappa, lam = correction = torch.randn(2, dtype=torch.float64) * (following < STEPS)
    plain = generate(scheduler, lambda step, _: true[step])
    slope = true[latest] - true[previous]

    def predict(step: int, latents: torch.Tensor) -> torch.Tensor:
        if latest < step < following:
            return true[latest] + betas[step - latest - 1] * slope
        answered = true[step] + reaction[step] * (latents - plain[step])
        if step == following:
            answered = answered + kappa * (answered - true[latest]) - lam * slope
        return answered

    off = generate(scheduler, predict)[-1] - plain[-1]
    energies, _ = run_energies(
        one_run(previous, latest, following, betas),
        (true @ true.T)[None],
        exact(response_of(scheduler), reaction),
        correction[None],
    )
    # The flow-matching solver computes in single precision.
    precise = 1e-5 if isinstance(scheduler, FlowMatchEulerDiscreteScheduler) else 1e-6
    assert energies.item() == pytest.approx(off.square().sum().item(), rel=precise)


def learned() -> tuple[ErrorDynamics, torch.Tensor, torch.Tensor]:
    """Random parameters, with noise levels and a response they may be asked of."""
    dynamics = ErrorDynamics().requires_grad_(False)
    dynamics.reaction.normal_(std=0.3)
    dynamics.doubt += torch.randn(3)
    scheduler = SCHEDULERS[1]
    return dynamics, ready(scheduler).sigmas[:-1], response_of(scheduler)


def batch() -> tuple[Runs, torch.Tensor]:
    """Runs of different lengths in two generations, and Gram matrices (2, S, S)."""
    walks = torch.randn(2, STEPS, 20, dtype=torch.float64).cumsum(dim=1)
    betas = torch.tensor([[0.8, 0, 0], [0.5, 0.9, 0], [0, 0, 0], [0.3, 0.6, 0.9]])
    previous, latest, following, which = torch.tensor(
        [(1, 3, 5, 0), (2, 5, 8, 1), (0, 0, 4, 1), (6, 8, STEPS, 0)]
    ).unbind(1)
    return Runs(previous, latest, following, which, betas), walks @ walks.mT


def test_chosen_corrections_leave_no_more_than_any_others():
    parameters, sigmas, response = learned()
    dynamics = parameters(sigmas, response)
    runs, gram = batch()
    least, chosen = run_energies(runs, gram, dynamics)
    follows = runs.following < STEPS
    assert (chosen[follows, 0] != 0).all()
    assert not chosen[~follows].any()
    for size in (1e-3, 0.03, 1.0):
        for _ in range(300):
            other = chosen + size * torch.randn(4, 2, dtype=torch.float64) * follows[:, None]
            energies, kept = run_energies(runs, gram, dynamics, other)
            assert kept is other
            assert (least <= energies * 1.001).all()  # the ridge costs a little
    alone, _ = run_energies(runs, gram, dynamics, torch.zeros(4, 2, dtype=torch.float64))
    assert (least[follows] < alone[follows]).all()


def test_only_differences_of_predictions_count_and_runs_do_not_see_one_another():
    parameters, sigmas, response = learned()
    dynamics = parameters(sigmas, response)
    runs, gram = batch()
    energies, corrections = run_energies(runs, gram, dynamics)
    shift = torch.randn(STEPS, dtype=torch.float64)
    moved = gram + shift[:, None] + shift + 3.0  # of v + w: <v, w> at either step, and <w, w>
    torch.testing.assert_close(run_energies(runs, moved, dynamics)[0], energies)
    for row in range(4):
        steps = [int(part[row]) for part in runs[:3]]
        length = min(steps[2], STEPS) - steps[1] - 1
        single = one_run(*steps, runs.coefficients[row, :length])
        own = gram[runs.which[row]][None]
        energy, correction = run_energies(single, own, dynamics)
        torch.testing.assert_close(energy[0], energies[row])
        torch.testing.assert_close(correction[0], corrections[row])


def test_doubt_is_added_for_what_a_correction_puts_in():
    parameters, sigmas, response = learned()
    sure = parameters(sigmas, response)._replace(doubt=torch.zeros(STEPS, dtype=torch.float64))
    doubt = torch.rand(STEPS, dtype=torch.float64)
    true = torch.randn(STEPS, WIDTH, dtype=torch.float64)
    runs = one_run(2, 4, 6, torch.tensor([0.4]))
    kappa, lam = correction = torch.tensor([0.7, -0.2], dtype=torch.float64)
    missed = true[4] + runs.coefficients[0, 0] * (true[4] - true[2]) - true[5]
    seen = true[6] + sure.reaction[6] * response[5, 5] * missed
    put_in = kappa * (seen - true[4]) - lam * (true[4] - true[2])
    with_doubt, without = (
        run_energies(runs, (true @ true.T)[None], each, correction[None])[0].item()
        for each in (sure._replace(doubt=doubt), sure)
    )
    expected = doubt[6].item() * put_in.square().sum().item()
    assert with_doubt - without == pytest.approx(expected, rel=1e-6)


def test_reaction_and_doubt_are_curves_over_the_noise_level():
    parameters, sigmas, response = learned()
    dynamics = parameters(sigmas, response)
    noise = sigmas.double().numpy().clip(0.01, 0.99)
    level = np.log((1 - noise) / noise) / 2
    reaction, log_doubt = (
        sum(c * level**k for k, c in enumerate(curve.tolist()))
        for curve in (parameters.reaction, parameters.doubt)
    )
    reach = propagate(response, dynamics.reaction)[:, -1].numpy()
    assert dynamics.response is response
    assert dynamics.reaction.numpy() == pytest.approx(reaction, rel=1e-5)
    assert dynamics.reach.numpy() == pytest.approx(reach)
    assert dynamics.doubt.numpy() == pytest.approx(np.exp(log_doubt) * reach**2, rel=1e-5)


@pytest.mark.parametrize("log_power", [-9.0, 0.0, 9.0])
def test_log_damage_is_a_norm_over_the_runs_of_each_generation(log_power):
    dynamics = ErrorDynamics().requires_grad_(False)
    dynamics.log_power.fill_(log_power)
    dynamics.offset.fill_(0.3)
    power = 0.5 + 1.5 / (1 + np.exp(0.7 - log_power))
    assert dynamics.power.item() == pytest.approx(power, rel=1e-5)
    energies, which = torch.rand(6, dtype=torch.float64), torch.tensor([0, 2, 0, 1, 2, 2])
    expected = [
        np.log(sum(e**power for e in energies[which == each].tolist()) ** (1 / power)) + 0.3
        for each in range(3)
    ]
    found = dynamics.log_damage(energies, which, 3).tolist()
    assert found == pytest.approx(expected, rel=1e-5)
