import pytest
import torch
from opensora_fixtures import case, facts, tensors

from foresight.clock import noise_levels
from foresight.config import UserError
from foresight.models import OpenSoraFlowScheduler


@pytest.mark.parametrize("name", facts("rflow_A")["timesteps"])
@pytest.mark.parametrize("kind", ["fp32", "bf16"])
def test_timesteps_are_those_of_the_reference_to_the_bit(name, kind):
    sizes = facts("rflow_A")["timesteps"][name]
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[kind]
    video = {key: torch.tensor([sizes[key]], dtype=dtype) for key in ("height", "width")}
    frames = torch.tensor([sizes["num_frames"]], dtype=dtype)
    scheduler = OpenSoraFlowScheduler()
    scheduler.set_timesteps(sizes["steps"], **video, num_frames=frames)
    expected = case("rflow_timesteps", f"{name}.{kind}")["timesteps"][:, 0]
    assert torch.equal(scheduler.timesteps, expected)
    if kind == "fp32":
        numbers = {key: sizes[key] for key in ("height", "width", "num_frames")}
        scheduler.set_timesteps(sizes["steps"], "cpu", **numbers)
        assert torch.equal(scheduler.timesteps, expected)


def test_timesteps_without_transform_are_evenly_spaced():
    scheduler = OpenSoraFlowScheduler(use_timestep_transform=False)
    scheduler.set_timesteps(30)
    expected = tensors("rflow_timesteps")["no_transform_30.timesteps"]
    assert torch.equal(scheduler.timesteps, expected.reshape(-1))


@pytest.mark.parametrize("side", [96, 144, 240, 720])
@pytest.mark.parametrize("steps", [1, 7, 30, 50])
def test_sigmas_fall_from_one_and_stay_above_zero(side, steps):
    scheduler = OpenSoraFlowScheduler()
    scheduler.set_timesteps(steps, height=side, width=side, num_frames=1)
    assert scheduler.sigmas[0] == pytest.approx(1, abs=1e-6)
    assert scheduler.sigmas.max() <= 1
    assert scheduler.sigmas.min() > 0
    assert (scheduler.sigmas.diff() < 0).all()
    timesteps, sigmas = noise_levels(scheduler)
    assert sigmas == pytest.approx(timesteps / 1000)


def test_steps_along_the_true_velocity_lead_from_noise_to_data():
    torch.manual_seed(0)
    data, noise = torch.randn(2, 1, 4, 5, 3, 3, dtype=torch.float64)
    scheduler = OpenSoraFlowScheduler()
    scheduler.set_timesteps(9, height=240, width=426, num_frames=51)
    sample = noise
    for timestep in scheduler.timesteps:
        expected = scheduler.add_noise(data, noise, timestep)
        torch.testing.assert_close(sample, expected, rtol=0, atol=1e-6)
        sample = scheduler.step(data - noise, timestep, sample).prev_sample
    torch.testing.assert_close(sample, data, rtol=0, atol=1e-6)


def test_samples_in_bf16_become_float32():
    scheduler = OpenSoraFlowScheduler()
    scheduler.set_timesteps(4, height=240, width=426, num_frames=51)
    sample = torch.ones(1, 4, 5, 3, 3, dtype=torch.bfloat16)
    assert scheduler.step(sample, scheduler.timesteps[0], sample)[0].dtype == torch.float32


@pytest.mark.parametrize("frames", [2, 16])
def test_lengths_for_which_the_transform_is_not_defined_are_refused(frames):
    with pytest.raises(UserError, match=f"at least 17, not {frames}"):
        OpenSoraFlowScheduler().set_timesteps(10, height=240, width=426, num_frames=frames)


def test_the_size_of_the_video_must_be_told():
    with pytest.raises(UserError, match="`height`, `width` and `num_frames`"):
        OpenSoraFlowScheduler().set_timesteps(10, height=240, width=426)
