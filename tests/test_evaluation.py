"""The comparison on a small untrained pipeline: its columns, its numbers, stopping and resuming."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from foresight import evaluation, report
from foresight.config import GenerationConfig, Prompt, UserError
from foresight.models.architecture import build_pipeline
from foresight.showcase import read_showcases

CONFIG = GenerationConfig(64, 64, 16, 6, 3.0)
PROMPTS = [Prompt("a red circle moves left", "still"), Prompt("a blue square", "hectic")]
SPECS = ["none", "static[interval=2]", "foresight[warmup_steps=3]", "fewer-steps[fraction=0.5]"]
CONTRACT = [
    *["method", "setting", "prompt", "seed", "height", "width", "num_frames"],
    *["num_inference_steps", "guidance_scale", "wall_seconds", "denoise_seconds"],
    *["baseline_denoise_seconds", "speedup", "compute_fraction", "psnr", "ssim", "vmaf", "lpips"],
    *["cache_bytes", "peak_memory_bytes", "device"],
]


@pytest.fixture(scope="module")
def pipe() -> object:
    """The embedded model's shape with random weights."""
    torch.manual_seed(0)
    pipe = build_pipeline()
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def folder(pipe: object, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished comparison."""
    folder = tmp_path_factory.mktemp("comparison")
    evaluation.compare(pipe, SPECS, PROMPTS, [CONFIG], output=folder, num_showcases=1)
    return folder


def test_columns_and_numbers(folder: Path) -> None:
    results = pd.read_parquet(folder / "results.parquet")
    assert set(CONTRACT) <= set(results.columns)
    assert len(results) == len(SPECS) * len(PROMPTS)
    assert len(pd.read_csv(folder / "results.csv")) == len(results)
    ratio = results["baseline_denoise_seconds"] / results["denoise_seconds"]
    assert np.allclose(results["speedup"], ratio)
    by_method = results.groupby("method")
    assert (by_method.get_group("none")["psnr"] == 100).all()
    assert (by_method.get_group("none")["compute_fraction"] == 1).all()
    assert (by_method.get_group("fewer-steps")["compute_fraction"] == 0.5).all()
    assert (by_method.get_group("static")["psnr"] < 100).all()
    assert (by_method.get_group("static")["cache_bytes"] > 0).all()


def test_showcase_and_page(folder: Path) -> None:
    (showcase,) = read_showcases(folder / "showcase")
    assert showcase["plans"]["foresight.0"].shape == (6, 12)
    assert report.write_report(folder).read_text("utf-8").count("<video") == 3


def test_stopped_comparison_goes_on(pipe: object, folder: Path) -> None:
    before = pd.read_parquet(folder / "results.parquet")
    lost = sorted((folder / "parts").glob("*.parquet"))[0]
    lost.unlink()
    after = evaluation.compare(pipe, SPECS, PROMPTS, [CONFIG], output=folder, num_showcases=1)
    decided = ["method", "setting", "prompt", "psnr", "ssim", "vmaf", "compute_fraction"]
    pd.testing.assert_frame_equal(before[decided], after[decided])
    again = (before["denoise_seconds"] != after["denoise_seconds"]).sum()
    assert again == len(SPECS)  # one video was run again, the other one's rows were kept


def test_another_setup_is_refused(pipe: object, folder: Path) -> None:
    held = (folder / "setup.json").read_text("utf-8")
    with pytest.raises(UserError, match="other settings; choose another folder"):
        evaluation.compare(pipe, SPECS[:2], PROMPTS, [CONFIG], output=folder)
    assert (folder / "setup.json").read_text("utf-8") == held


def test_bad_requests_write_nothing(pipe: object, tmp_path: Path) -> None:
    output = tmp_path / "comparison"
    for policies in (["static[interval=2]", "static[interval=2]"], ["no-such"], []):
        with pytest.raises(UserError):
            evaluation.compare(pipe, policies, PROMPTS, [CONFIG], output=output)
    with pytest.raises(UserError, match="at least 1"):
        evaluation.compare(pipe, SPECS, PROMPTS, [CONFIG], output=output, limit=0)
    assert not output.exists()


def test_uncached_runs_surround_and_mix_with_the_others(pipe: object) -> None:
    variants = evaluation.expand(pipe, ["static", "random", "none"], ())
    order = evaluation._order(variants, 2, seed=0)
    assert order[0] is None
    assert order[-1] is None
    assert sorted(i for i in order if i is not None) == sorted([*range(len(variants))] * 2)
    gaps = np.diff([position for position, index in enumerate(order) if index is None])
    assert gaps.max() <= evaluation.BASELINE_EVERY + 1


def test_setup_names_model_and_settings(folder: Path) -> None:
    setup = json.loads((folder / "setup.json").read_text("utf-8"))
    assert setup["model"]["num_blocks"] == 12
    assert "static[interval=2]" in setup["settings"]
