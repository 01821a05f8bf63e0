import functools
import json

import pytest
import torch
from opensora_fixtures import facts, small_pipeline, tensors
from safetensors.torch import save_file

import foresight.models.opensora.released as released
from foresight.config import UserError
from foresight.models import AutoencoderKLOpenSora, OpenSoraPipeline


@pytest.fixture
def release(tmp_path, monkeypatch):
    """Folders laid out like the release, with the reference's small models in them."""
    folders = {name: tmp_path / name for name in ("transformer", "vae", "text_encoder")}
    for folder in folders.values():
        folder.mkdir()
    config = {**facts("stdit3_A")["config"], "model_type": "STDiT3", "enable_flash_attn": True}
    (folders["transformer"] / "config.json").write_text(json.dumps(config), "utf-8")
    weights = tensors("stdit3_A_weights")
    half = dict(list(weights.items())[::2])
    save_file(half, folders["transformer"] / "model-00001-of-00002.safetensors")
    rest = {key: value for key, value in weights.items() if key not in half}
    save_file(rest, folders["transformer"] / "model-00002-of-00002.safetensors")
    save_file(tensors("vae_A_weights"), folders["vae"] / "model.safetensors")
    pipe = small_pipeline()
    pipe.text_encoder.save_pretrained(folders["text_encoder"])
    pipe.tokenizer.save_pretrained(folders["text_encoder"])
    small = functools.partial(AutoencoderKLOpenSora, **facts("vae_A")["config"])
    monkeypatch.setattr(released, "AutoencoderKLOpenSora", small)
    return folders


def video(pipe) -> torch.Tensor:
    pipe.set_progress_bar_config(disable=True)
    return pipe(
        "a red circle",
        height=16,
        width=16,
        num_frames=17,
        num_inference_steps=2,
        generator=torch.Generator("cpu").manual_seed(0),
        output_type="pt",
    ).frames


def test_the_release_becomes_a_pipeline_that_can_be_saved(release, tmp_path):
    pipe = released.load_released(**release, dtype=torch.float32)
    assert torch.equal(video(pipe), video(small_pipeline()))
    pipe.save_pretrained(tmp_path / "pipeline")
    loaded = OpenSoraPipeline.from_pretrained(tmp_path / "pipeline", low_cpu_mem_usage=False)
    assert torch.equal(video(loaded), video(pipe))


def test_parts_have_the_precision_of_the_release(release):
    pipe = released.load_released(**release)
    kinds = [part.dtype for part in (pipe.transformer, pipe.vae, pipe.text_encoder)]
    assert kinds == [torch.bfloat16, torch.bfloat16, torch.float32]
    assert video(pipe).isfinite().all()


def test_incomplete_folders_are_refused_by_name(release):
    shard = release["transformer"] / "model-00002-of-00002.safetensors"
    shard.unlink()
    with pytest.raises(UserError, match=r"(?s)transformer do not fit.*Missing key"):
        released.load_released(**release)
    (release["vae"] / "model.safetensors").unlink()
    with pytest.raises(UserError, match="vae holds no safetensors"):
        released.load_released(**release)
    (release["transformer"] / "config.json").unlink()
    with pytest.raises(UserError, match=r"cannot read .*config\.json"):
        released.load_released(**release)
