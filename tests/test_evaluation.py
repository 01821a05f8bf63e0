"""The comparison on a small untrained pipeline: its columns, its numbers, stopping and resuming."""

import dataclasses
import itertools
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from foresight import evaluation, report
from foresight.config import GenerationConfig, Prompt, UserError
from foresight.models.architecture import build_pipeline
from foresight.pipeline import generate, load_pipeline
from foresight.policies import search
from foresight.showcase import read_showcases

ROOT = Path(__file__).resolve().parents[1]
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


def chosen(prompts: int, seeds: int, configs: int, limit: int | None) -> list[tuple[str, int, int]]:
    """Prompt, seed and number of steps of the videos of a comparison."""
    named = [Prompt(f"prompt {number}") for number in range(prompts)]
    sizes = [dataclasses.replace(CONFIG, num_inference_steps=1 + step) for step in range(configs)]
    videos = evaluation._chosen(named, range(seeds), sizes, limit)
    return [(video.prompt.text, video.seed, video.config.num_inference_steps) for video in videos]


@pytest.mark.parametrize("seeds", [1, 2, 3])
def test_each_configuration_gets_as_many_videos_and_none_twice(seeds: int) -> None:
    for prompts, configs in itertools.product((1, 2, 5, 8), (1, 2, 3, 7)):
        most = prompts * seeds * configs
        for limit in [*range(1, most + 1), most + 5, None]:
            videos = chosen(prompts, seeds, configs, limit)
            assert len(set(videos)) == len(videos) == (most if limit is None else min(limit, most))
            counts = Counter(steps for *_, steps in videos)
            shares = [counts[1 + number] for number in range(configs)]
            assert max(shares) - min(shares) <= 1


def test_configurations_share_no_prompt_where_there_are_enough() -> None:
    for configs, share in itertools.product(range(1, 9), range(1, 9)):
        for prompts in range(configs * share, configs * share + 12):
            videos = chosen(prompts, 1, configs, configs * share)
            assert len({prompt for prompt, *_ in videos}) == configs * share


def test_prompts_of_a_configuration_are_spread_over_all() -> None:
    """No two of them nearer than whole steps allow."""
    for prompts, share in ((12, 3), (12, 5), (30, 7), (7, 7)):
        for number in range(1, 4):
            videos = chosen(prompts, 1, 3, 3 * share)
            places = [int(text.split()[1]) for text, _, steps in videos if steps == number]
            around = np.diff([*places, places[0] + prompts])
            assert around.min() >= prompts // share
            assert around.max() <= -(-prompts // share)


@pytest.mark.parametrize(
    ("seconds", "spread"),
    [([3, 3, 3], 0), ([100, 101, 99], 0.01), ([8, 10, 9], 1 / 9), ([2, 30, 10], 1.4)],
    ids=str,
)
def test_uncached_runs_that_differ_are_told_of(
    pipe: object,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    seconds: list[float],
    spread: float,
) -> None:
    """Half of them by more than a tenth of the median; with the file that must go."""
    made, left = generate(pipe, PROMPTS[0].text, CONFIG, seed=0, policy=None), list(seconds)

    def timed(*args: object, policy: object = "warm-up", **others: object) -> object:
        return made if policy else dataclasses.replace(made, denoise_seconds=left.pop(0))

    monkeypatch.setattr(evaluation, "generate", timed)
    monkeypatch.setattr(evaluation.metrics, "vmaf", lambda *_: 1.0)
    found = evaluation.compare(
        pipe, ["none"], PROMPTS[:1], [CONFIG], output=tmp_path, num_showcases=0, repeats=2
    )
    assert not left
    assert found["baseline_spread"].tolist() == pytest.approx([spread])
    assert found["baseline_denoise_seconds"].tolist() == [np.median(seconds)]
    (part,) = (tmp_path / "parts").iterdir()
    shown = capsys.readouterr().out
    assert (str(part) in shown) == (f"differ by {spread:.0%}" in shown) == (spread > 0.1)


def test_uncached_runs_surround_and_mix_with_the_others(pipe: object) -> None:
    variants = evaluation.expand(pipe, ["static", "random", "none"], ())
    order = evaluation._order(variants, 2, seed=0)
    assert order[0] is None
    assert order[-1] is None
    assert sorted(i for i in order if i is not None) == sorted([*range(len(variants))] * 2)
    gaps = np.diff([position for position, index in enumerate(order) if index is None])
    assert gaps.max() <= evaluation.BASELINE_EVERY + 1


def test_steps_are_searched_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    happened: list[str] = []
    searched, run = search.refine, evaluation._run_video
    monkeypatch.setattr(search, "refine", lambda *a: happened.append("search") or searched(*a))
    monkeypatch.setattr(evaluation, "_run_video", lambda *a: happened.append("video") or run(*a))
    evaluation.compare(
        load_pipeline(ROOT / "checkpoints/tiny-latte"),
        [str(ROOT / "checkpoints/policies/tiny-latte")],
        PROMPTS,
        [CONFIG, dataclasses.replace(CONFIG, guidance_scale=4.0)],
        output=tmp_path / "comparison",
        speedups=(1.5, 2.0),
    )
    assert happened == [*["search"] * 2, *["video"] * 2] * 2


def test_setup_names_model_and_settings(folder: Path) -> None:
    setup = json.loads((folder / "setup.json").read_text("utf-8"))
    assert setup["model"]["num_blocks"] == 12
    assert "static[interval=2]" in setup["settings"]
