"""The embedded model: loads with diffusers alone, fits into git, and listens to its prompt."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import LattePipeline
from diffusers.utils import logging

FOLDER = Path(__file__).parents[1] / "checkpoints" / "tiny-latte"


@pytest.fixture(scope="module")
def embedded() -> LattePipeline:
    logging.disable_progress_bar()
    pipe = LattePipeline.from_pretrained(FOLDER, low_cpu_mem_usage=False)
    logging.enable_progress_bar()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_it_is_safetensors_small_enough_for_git():
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 25e6
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".md", ".png"}


def test_its_layout_is_that_of_the_family(embedded):
    assert len(embedded.transformer.transformer_blocks) >= 6
    assert len(embedded.transformer.temporal_transformer_blocks) >= 6
    assert type(embedded.scheduler).__name__ == "DDIMScheduler"


def test_backgrounds_follow_the_prompt(embedded):
    def mean_colour(background: str) -> np.ndarray:
        video = embedded(
            f"a white circle stays still over {background}",
            height=64,
            width=64,
            num_inference_steps=10,
            guidance_scale=4.0,
            generator=torch.Generator().manual_seed(3),
            output_type="np",
        ).frames[0]
        border = np.concatenate([video[:, :6], video[:, -6:]], axis=1)
        return border.mean(axis=(0, 1, 2))

    black, meadow = mean_colour("a black background"), mean_colour("a green meadow")
    sky, sunset = mean_colour("a blue sky"), mean_colour("a sunset")
    assert black.max() < 0.25
    assert meadow[1] > max(meadow[0], meadow[2])
    assert sky[2] > sky[0]
    assert sunset[0] > sunset[2]
