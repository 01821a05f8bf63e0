import contextlib
import subprocess
import sys

import numpy as np
import pytest
import torch
from opensora_fixtures import case, facts, small_pipeline
from torch.testing import assert_close

import foresight
import foresight.models.opensora.pipeline as pipeline_module
from foresight.blocks import find_blocks
from foresight.config import UserError
from foresight.models import OpenSoraPipeline
from foresight.pipeline import load_pipeline

PROMPT = "a red circle moves left"
SMALL = {"height": 32, "width": 48, "num_frames": 17, "num_inference_steps": 4}
LIMITS = {"rtol": 0, "atol": 1e-4}


@pytest.fixture(scope="module")
def pipe():
    return small_pipeline()


def seeded():
    return torch.Generator("cpu").manual_seed(0)


def latents_of(pipe, **changed):
    settings = {"prompt": PROMPT, **SMALL, "generator": seeded(), "output_type": "latent"}
    return pipe(**{**settings, **changed}).frames


@contextlib.contextmanager
def model_calls(transformer):
    """The keyword arguments of every forward pass."""
    calls = []
    handle = transformer.register_forward_pre_hook(
        lambda _, __, kwargs: calls.append(kwargs), with_kwargs=True
    )
    yield calls
    handle.remove()


@pytest.mark.parametrize("name", facts("rflow_A")["sampling"])
def test_sampling_runs_are_those_of_the_reference(pipe, name, monkeypatch):
    run, known = case("rflow_sample_A", name), facts("rflow_A")["sampling"][name]
    draws = list(run.get("noise", ()))
    monkeypatch.setattr(pipeline_module, "randn_tensor", lambda *_: draws.pop(0))
    with model_calls(pipe.transformer) as calls:
        result = pipe(
            prompt_embeds=run["in.y"].reshape(-1, *run["in.y"].shape[-2:]),
            prompt_attention_mask=run["in.mask"],
            latents=run["in.z"],
            frame_mask=run.get("in.frame_mask"),
            height=known["height"],
            width=known["width"],
            num_frames=known["num_frames"],
            num_inference_steps=known["steps"],
            guidance_scale=known["cfg_scale"],
            fps=known["fps"],
            output_type="latent",
        ).frames
    batch = len(run["in.z"])
    for step, call in enumerate(calls):
        both = call["hidden_states"]
        assert torch.equal(both[:batch], both[batch:])
        assert_close(both[:batch], run["model_in"][step], **LIMITS)
        assert torch.equal(call["timestep"][:batch], run["timesteps"][step])
        if "x_mask" in run:
            assert torch.equal(call["frame_mask"], run["x_mask"][step][:batch].bool())
    # The reference puts the unguided rows last, this pipeline the prompts.
    cond, uncond = run["step0.y"].flatten(0, -3).chunk(2)
    assert_close(calls[0]["encoder_hidden_states"], torch.cat((uncond, cond)))
    assert len(calls) == known["steps"]
    assert not draws
    assert_close(result, run["out.z"], **LIMITS)


def test_a_video_from_text(pipe):
    videos = pipe([PROMPT, "a blue square"], **SMALL, generator=seeded(), output_type="np").frames
    assert videos.shape == (2, 17, 32, 48, 3)
    assert videos.min() >= 0
    assert videos.max() <= 1
    assert videos.std() > 0.01
    assert not np.allclose(videos[0], videos[1], atol=0.01)
    images = pipe(PROMPT, **{**SMALL, "num_frames": 1}, output_type="pil", return_dict=False)[0]
    assert [image.size for image in images[0]] == [(48, 32)]


def test_sides_are_rounded_down_while_the_model_is_told_what_was_asked(pipe):
    with model_calls(pipe.transformer) as calls:
        video = pipe(PROMPT, **{**SMALL, "height": 38, "width": 50}, output_type="pt").frames
    assert video.shape == (1, 17, 3, 32, 48)
    assert (calls[0]["height"], calls[0]["width"]) == (38, 50)


def test_guidance_is_the_line_through_both_predictions(pipe):
    """Velocity is linear in the scale, so the first of two steps is too; 1 leaves the prompt."""
    firsts = []
    for scale in (1.0, 3.0, 5.0):
        seen = []
        latents_of(
            pipe,
            guidance_scale=scale,
            callback_on_step_end=lambda _, __, ___, given, seen=seen: seen.append(given["latents"]),
        )
        firsts.append(seen[0])
    assert_close(firsts[1] - firsts[0], firsts[2] - firsts[1], rtol=0, atol=1e-5)
    assert not torch.allclose(firsts[0], firsts[1], atol=0.01)


def test_padding_of_the_prompt_is_zero_and_masked(pipe):
    embeds, mask = pipe.encode_prompt([PROMPT])
    assert embeds.shape == (1, 12, 32)
    assert (embeds.abs().sum(-1) > 0).tolist() == mask.bool().tolist()
    assert 0 < mask.sum() < 12


def test_prompts_are_cleaned_and_scored(pipe):
    plain = latents_of(pipe, aesthetic_score=None)
    assert torch.equal(
        latents_of(pipe, prompt=f" <b>{PROMPT.upper()}</b>\n", aesthetic_score=None), plain
    )
    scored = latents_of(pipe, aesthetic_score=6.5)
    by_hand = latents_of(pipe, prompt=f"{PROMPT} aesthetic score: 6.5.", aesthetic_score=None)
    assert torch.equal(scored, by_hand)
    assert not torch.equal(scored, plain)


def test_given_frames_stay_as_they_are(pipe):
    start = torch.randn(1, 4, 5, 4, 6, generator=seeded())
    mask = torch.tensor([[0.0, 1, 1, 0, 1]])
    result = latents_of(pipe, latents=start, frame_mask=mask)
    kept = mask[0] == 0
    assert torch.equal(result[:, :, kept], start[:, :, kept])
    assert not torch.isclose(result[:, :, ~kept], start[:, :, ~kept]).any(dim=1).all()
    everything = latents_of(pipe, latents=start, frame_mask=torch.ones(1, 5))
    assert torch.equal(everything, latents_of(pipe, latents=start))


def test_callbacks_can_change_latents_and_interrupt(pipe):
    def zero_and_stop(pipe, step, timestep, given):
        if step == 1:
            pipe._interrupt = True
        return {"latents": torch.zeros_like(given["latents"])}

    with model_calls(pipe.transformer) as calls:
        assert not latents_of(pipe, callback_on_step_end=zero_and_stop).any()
    assert len(calls) == 2
    assert latents_of(pipe).any()


def test_saved_pipeline_makes_the_same_video(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    loaded = OpenSoraPipeline.from_pretrained(tmp_path, low_cpu_mem_usage=False)
    loaded.set_progress_bar_config(disable=True)
    assert torch.equal(latents_of(loaded), latents_of(pipe))
    with pytest.raises(UserError, match="unpickle"):
        OpenSoraPipeline.from_pretrained(tmp_path, use_safetensors=False)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"prompt": None}, "either `prompt` or `prompt_embeds`"),
        ({"frame_mask": torch.ones(1, 5)}, "needs `latents`"),
        (
            {"frame_mask": torch.ones(1, 4), "latents": torch.zeros(1, 4, 5, 4, 6)},
            r"\(1, 4\) must have .* \(1, 5\)",
        ),
        ({"output_type": "gif"}, "not 'gif'"),
        ({"num_frames": 8}, "at least 17, not 8"),
        ({"callback_on_step_end_tensor_inputs": ["noise"]}, "not \\['noise'\\]"),
    ],
)
def test_arguments_that_do_not_go_together_are_refused(pipe, changed, message):
    with pytest.raises(UserError, match=message):
        latents_of(pipe, **changed)


def test_naming_the_models_does_not_load_torch():
    code = "import sys, foresight.models; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


# Reuse


def test_policy_none_is_bit_identical_to_the_untouched_pipeline(pipe):
    uncached = latents_of(pipe)
    with foresight.reuse(pipe, "none"):
        assert torch.equal(latents_of(pipe), uncached)
    assert torch.equal(latents_of(pipe), uncached)


def test_reused_blocks_do_what_replaced_outputs_do(pipe):
    steps = 8
    with foresight.reuse(pipe, "static[interval=2]") as session:
        reused = latents_of(pipe, num_inference_steps=steps)
    actions = session.report().actions
    assert actions.shape == (steps, 4)
    assert 0 < (actions > 0).mean() < 1
    step, residuals = -1, {}

    def count(*_):
        nonlocal step
        step += 1

    def replace(index, args, output):
        if actions[step, index] == 0:
            residuals[index] = output - args[0]
            return output
        return args[0] + residuals[index]

    handles = [pipe.transformer.register_forward_pre_hook(count)]
    for index, block in enumerate(find_blocks(pipe.transformer)):
        handles.append(
            block.module.register_forward_hook(
                lambda _, args, output, index=index: replace(index, args, output)
            )
        )
    by_hand = latents_of(pipe, num_inference_steps=steps)
    for handle in handles:
        handle.remove()
    assert_close(reused, by_hand, **LIMITS)
    assert not torch.allclose(reused, latents_of(pipe, num_inference_steps=steps), atol=0.01)


def test_the_commands_load_a_saved_pipeline(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    loaded = load_pipeline(tmp_path, device="cpu")
    assert type(loaded) is OpenSoraPipeline
    assert torch.equal(latents_of(loaded), latents_of(pipe))
