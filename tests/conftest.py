"""The embedded model's architecture with random weights: everything about it but what it paints."""

from pathlib import Path

import numpy as np
import pytest
import torch
from latte_by_hand import NUM_BLOCKS, PROFILED_CONFIG, PROFILED_PROMPTS, STEPS, sample

from foresight.config import GenerationConfig
from foresight.models.architecture import TEXT_WIDTH, build_pipeline
from foresight.pipeline import load_pipeline
from foresight.policies.base import Generation
from foresight.profiling import profile


def random_pipeline(seed: int):
    torch.manual_seed(seed)
    pipe = build_pipeline()
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="session")
def pipe():
    """Tests give it back without hooks."""
    return random_pipeline(0)


@pytest.fixture(scope="session")
def other_pipe():
    """The same architecture, other weights."""
    return random_pipeline(1)


@pytest.fixture(scope="session")
def model_folder(pipe, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "random-latte"
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def uncached(pipe) -> torch.Tensor:
    """Final latents of the untouched pipeline."""
    return sample(pipe)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def generation() -> Generation:
    """What a policy is told before the first step."""
    order = range(NUM_BLOCKS // 2)
    kinds = ("transformer_blocks", "temporal_transformer_blocks")
    return Generation(
        config=GenerationConfig(32, 32, 16, STEPS, 4.0),
        timesteps=np.linspace(999, 99, STEPS),
        sigmas=np.linspace(0.99, 0.1, STEPS),
        prompt_embedding=np.random.default_rng(0).normal(size=TEXT_WIDTH),
        block_names=tuple(f"{kind}.{i}" for i in order for kind in kinds),
        block_kinds=kinds * len(order),
    )


@pytest.fixture(scope="session")
def profiled(model_folder, tmp_path_factory) -> Path:
    """A trace set of three generations, made without interruption; not to be changed."""
    folder = tmp_path_factory.mktemp("profiled") / "traces"
    profile(load_pipeline(model_folder, device="cpu"), PROFILED_PROMPTS, [PROFILED_CONFIG], folder)
    return folder
