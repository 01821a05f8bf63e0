"""From what runs leave in the latents to the error of the video."""

import numpy as np
import pytest
import torch

from foresight.policies.damage import DamageModel, gains_after

CURVE = (0.4, -0.7, 0.2)


@pytest.fixture
def damage() -> DamageModel:
    model = DamageModel().requires_grad_(False)
    model.curve.copy_(torch.tensor(CURVE))
    return model


def log_gain_by_hand(sigma: float) -> float:
    """A parabola over half the log of signal over noise, which stays within [0.01, 0.99]."""
    noise = min(max(sigma, 0.01), 0.99)
    level = np.log((1 - noise) / noise) / 2
    return CURVE[0] + CURVE[1] * level + CURVE[2] * level**2


@pytest.mark.parametrize("log_power", [-9.0, 0.0, 9.0])
def test_log_damage_is_a_norm_over_the_runs_of_each_generation(damage, log_power):
    damage.log_power.fill_(log_power)
    power = 0.5 + 1.5 / (1 + np.exp(0.7 - log_power))
    assert damage.power.item() == pytest.approx(power, rel=1e-5)
    torch.manual_seed(0)
    energies, which = torch.rand(6, dtype=torch.float64), torch.tensor([0, 2, 0, 1, 2, 2])
    expected = [
        np.log(sum(e**power for e in energies[which == each].tolist()) ** (1 / power))
        for each in range(3)
    ]
    found = damage.log_damage(energies.log(), which, 3).tolist()
    assert found == pytest.approx(expected, rel=1e-5)


def test_the_power_goes_from_amplitudes_that_add_up_to_the_worst_run(damage):
    """Four equal runs are off by 16, 4 or hardly more than one, in energy."""
    four, which = torch.zeros(4, dtype=torch.float64), torch.zeros(4, dtype=torch.int64)
    for log_power, energy in ((-99.0, 16), (0.7 - np.log(2), 4), (99.0, 2)):
        damage.log_power.fill_(log_power)
        found = damage.log_damage(four, which, 1).exp().item()
        assert found == pytest.approx(energy, rel=1e-4)


def test_a_generation_that_nothing_is_skipped_of_is_hardly_damaged(damage):
    energies, which = torch.zeros(1, dtype=torch.float64), torch.tensor([1])
    first, second = damage.log_damage(energies, which, 2).tolist()
    assert np.isfinite(first)
    assert first < second - 20


def test_the_gain_is_a_curve_over_the_noise_level(damage):
    sigmas = torch.tensor([[1.0, 0.97, 0.5], [0.2, 0.003, 0.0]])
    expected = [[log_gain_by_hand(sigma) for sigma in row] for row in sigmas.tolist()]
    assert damage.log_gain(sigmas).numpy() == pytest.approx(np.array(expected), rel=1e-5)


def test_gains_are_those_before_each_step_and_at_the_end(damage):
    sigmas = np.array([0.98, 0.8, 0.45, 0.1])
    expected = [np.exp(log_gain_by_hand(sigma)) for sigma in (*sigmas, 0.0)]
    assert gains_after(damage, sigmas) == pytest.approx(expected, rel=1e-5)


def test_untrained_nothing_grows_or_heals():
    assert gains_after(DamageModel(), np.linspace(1, 0.1, 5)) == pytest.approx(np.ones(6))
