"""tiny-wan's parts and its recipe, at the smallest budget: the pipeline itself is the truth."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import WanPipeline

from foresight.config import GenerationConfig
from foresight.models import denoiser, reference
from foresight.models.autoencoder import load_state
from foresight.models.denoiser import make_optimizers
from foresight.models.latents import encode, fit_scale, scale_latents
from foresight.models.objectives import FlowMatchingLoss
from foresight.models.wan import LATENT_CHANNELS, NUM_FRAMES, TEXT_LENGTH, build_pipeline
from foresight.pipeline import call_arguments, generate, load_pipeline

PROMPT = "a red circle moves left over a blue sky"
CONFIG = GenerationConfig(32, 32, 5, 3, 4.0)


@pytest.fixture(scope="module")
def wan() -> WanPipeline:
    torch.manual_seed(0)
    pipe = build_pipeline()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def run_recipe(folder: Path) -> None:
    """The whole recipe in three denoiser steps, without compiling and without the card."""
    budget = {"vae-steps": 2, "vae-clip-steps": 1, "steps": 3, "image-steps": 1}
    budget |= {"batch-size": 1, "pool-parts": 3, "part-size": 1}
    options = [f"--{name}={value}" for name, value in budget.items()]
    folders = [f"--work={folder / 'work'}", f"--output={folder / 'model'}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", lambda forward, **_: forward)
        patch.setattr(reference, "write_card", lambda *_, **__: None)
        patch.setattr(
            sys, "argv", ["reference", "--model=tiny-wan", "--device=cpu", *options, *folders]
        )
        reference.main()


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """Folder of a run that nothing disturbed; not to be changed."""
    folder = tmp_path_factory.mktemp("recipe")
    run_recipe(folder)
    return folder


def test_a_killed_run_ends_where_an_undisturbed_one_does(trained, tmp_path, monkeypatch):
    shutil.copytree(trained / "work", tmp_path / "work")
    (tmp_path / "work/denoiser.pt").unlink()

    class Killed(BaseException):
        """Nothing may catch it."""

    save_state = denoiser.save_state

    def save_and_die(path: Path, state: dict) -> None:
        save_state(path, state)
        if path.name == "denoiser.pt" and state["step"] == 2:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(denoiser, "save_state", save_and_die)
        patch.setattr(denoiser, "SECONDS_BETWEEN_SAVES", 0.0)
        with pytest.raises(Killed):
            run_recipe(tmp_path)
    state = load_state(tmp_path / "work/denoiser.pt")
    assert state is not None
    assert state["step"] == 2
    run_recipe(tmp_path)
    for file in ("transformer/diffusion_pytorch_model", "text_encoder/model"):
        one, other = (
            (folder / "model" / f"{file}.safetensors").read_bytes()
            for folder in (trained, tmp_path)
        )
        assert one == other


def test_the_export_is_a_plain_pipeline_that_fits_into_git(trained):
    files = [path for path in (trained / "model").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 25e6
    assert {path.suffix for path in files} <= {".json", ".safetensors"}
    pipe = load_pipeline(trained / "model", device="cpu")
    assert type(pipe) is WanPipeline
    assert call_arguments(pipe, CONFIG)["max_sequence_length"] == TEXT_LENGTH
    ours = generate(pipe, PROMPT, CONFIG, seed=3).frames
    theirs = pipe(
        PROMPT,
        height=32,
        width=32,
        num_frames=5,
        num_inference_steps=3,
        guidance_scale=4.0,
        max_sequence_length=TEXT_LENGTH,
        generator=torch.Generator().manual_seed(3),
    ).frames[0]
    assert ours.shape == (5, 32, 32, 3)
    np.testing.assert_array_equal(ours, (theirs * 255).round().astype(np.uint8))


def test_a_clip_is_at_first_coded_as_single_frames(wan):
    clip = torch.rand(1, 3, NUM_FRAMES, 32, 32) * 2 - 1
    with torch.no_grad():
        latents = encode(wan.vae, clip).mode()
        stills = [encode(wan.vae, clip[:, :, n : n + 1]).mode() for n in range(0, NUM_FRAMES, 2)]
    assert latents.shape == (1, LATENT_CHANNELS, 9, 8, 8)
    torch.testing.assert_close(latents, torch.cat(stills, dim=2))


def test_the_pipeline_undoes_the_scale(wan, monkeypatch):
    sample = torch.randn(2, LATENT_CHANNELS, 3, 8, 8) * 3 + 1
    fit_scale(wan.vae, [sample, sample[:, :, :, :4]])
    decoded, decode = [], wan.vae.decode
    monkeypatch.setattr(wan.vae, "decode", lambda z, **kw: decoded.append(z) or decode(z, **kw))
    denoised = generate(wan, PROMPT, CONFIG, seed=0).latents
    torch.testing.assert_close(scale_latents(wan.vae, decoded[0]), denoised)


def test_the_loss_is_zero_for_the_straight_path_and_sees_what_the_pipeline_passes(wan, monkeypatch):
    objective = FlowMatchingLoss(wan)
    monkeypatch.setattr(objective.clauses, "forward", lambda *_: torch.zeros(()))
    latents, seen = torch.randn(64, LATENT_CHANNELS, 1, 2, 2), {}

    class Straight(torch.nn.Module):
        def forward(self, noisy, timestep, encoder_hidden_states, return_dict):
            seen.update(timesteps=timestep, embeds=encoder_hidden_states)
            return ((noisy - latents) / (timestep / 1000).view(-1, 1, 1, 1, 1),)

    objective.transformer = Straight()
    with torch.no_grad():
        loss = objective(latents, [PROMPT] * 64, torch.Generator().manual_seed(0))
        shown, empty = wan.encode_prompt(PROMPT, max_sequence_length=TEXT_LENGTH)
    assert loss < 1e-4
    dropped = [torch.allclose(row, empty[0], atol=1e-5) for row in seen["embeds"]]
    assert 0 < sum(dropped) < 32
    for row, is_dropped in zip(seen["embeds"], dropped, strict=True):
        torch.testing.assert_close(row, (empty if is_dropped else shown)[0])
    # Half of the noise levels lie above shift * 0.5 / (1 + (shift - 1) * 0.5) = 0.75.
    assert abs(seen["timesteps"].median() - 750) < 15


def test_the_sampler_follows_the_path_that_the_loss_trains(wan, monkeypatch):
    clean = torch.randn(1, LATENT_CHANNELS, 3, 8, 8)

    def straight(hidden_states, timestep, **_):
        return ((hidden_states - clean) / (timestep / 1000).view(-1, 1, 1, 1, 1),)

    monkeypatch.setattr(wan.transformer, "forward", straight)
    latents = wan(
        PROMPT, height=32, width=32, num_frames=5, num_inference_steps=30, output_type="latent"
    ).frames
    # The scheduler rounds timesteps down to whole numbers: a few per mille of the last sigma.
    torch.testing.assert_close(latents, clean, atol=0.05, rtol=0)


def test_training_lowers_the_loss():
    torch.manual_seed(0)
    pipe = build_pipeline()
    objective = FlowMatchingLoss(pipe)
    optimizers = make_optimizers([pipe.transformer, pipe.text_encoder])
    latents, losses = torch.randn(4, LATENT_CHANNELS, 1, 8, 8), []
    for _ in range(8):
        loss = objective(latents, [PROMPT] * 4, torch.Generator().manual_seed(0))
        loss.backward()
        losses.append(loss.item())
        for optimizer, peak in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = peak
            optimizer.step()
            optimizer.zero_grad()
    assert losses[-1] < 0.9 * losses[0]
