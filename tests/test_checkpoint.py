"""The embedded models: load with diffusers alone, fit into git, and listen to their prompts."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, LattePipeline, WanPipeline
from diffusers.utils import logging

CHECKPOINTS = Path(__file__).parents[1] / "checkpoints"
CALLS = {
    "tiny-latte": {"video_length": 16},
    "tiny-wan": {"num_frames": 17, "max_sequence_length": 32},
}


@pytest.fixture(scope="module", params=list(CALLS))
def name(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def embedded(name) -> Any:
    logging.disable_progress_bar()
    pipe = DiffusionPipeline.from_pretrained(CHECKPOINTS / name)
    logging.enable_progress_bar()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_it_is_safetensors_small_enough_for_git(name):
    files = [path for path in (CHECKPOINTS / name).rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 25e6
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".md", ".png"}


def test_its_layout_is_that_of_the_family(name, embedded):
    scheduler = type(embedded.scheduler).__name__
    if name == "tiny-latte":
        assert isinstance(embedded, LattePipeline)
        assert len(embedded.transformer.transformer_blocks) >= 6
        assert len(embedded.transformer.temporal_transformer_blocks) >= 6
        assert scheduler == "DDIMScheduler"
    else:
        assert isinstance(embedded, WanPipeline)
        assert len(embedded.transformer.blocks) >= 12
        assert scheduler == "UniPCMultistepScheduler"


def test_backgrounds_follow_the_prompt(name, embedded):
    def mean_colour(background: str) -> np.ndarray:
        video = embedded(
            f"a white circle stays still over {background}",
            height=64,
            width=64,
            num_inference_steps=20,
            guidance_scale=4.0,
            generator=torch.Generator().manual_seed(3),
            output_type="np",
            **CALLS[name],
        ).frames[0]
        border = np.concatenate([video[:, :6], video[:, -6:]], axis=1)
        return border.mean(axis=(0, 1, 2))

    black, meadow = mean_colour("a black background"), mean_colour("a green meadow")
    sky, sunset = mean_colour("a blue sky"), mean_colour("a sunset")
    assert black.max() < 0.25
    assert meadow[1] > max(meadow[0], meadow[2])
    assert sky[2] > sky[0]
    assert sunset[0] > sunset[2]
