"""Curves and tables of a comparison against values by hand; the page is whole and offline."""

import re
import subprocess
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pandas as pd
import pytest

from foresight import curves, report
from foresight.config import GenerationConfig
from foresight.showcase import Kept, encode, keep_best, read_showcases, write_showcase

CONFIG = GenerationConfig(64, 64, 8, 20, 4.0)
SWEEPS = {  # method: (mean speed-up, mean PSNR) of each setting
    "clever": [(1.25, 60.0), (1.5, 50.0), (2.0, 44.0), (2.5, 40.0), (3.2, 36.0)],
    "foresight": [(1.2, 45.0), (1.6, 40.0), (1.9, 30.0), (2.1, 34.0), (2.4, 32.0)],
    "static": [(1.5, 38.0), (2.0, 33.0), (3.0, 28.0)],
    "fewer-steps": [(1.5, 34.0), (2.0, 31.0), (3.0, 27.0)],
}


def make_results(num_videos: int = 6) -> pd.DataFrame:
    """A results frame whose means over videos are exactly `SWEEPS`."""
    offsets = np.linspace(-2, 2, num_videos)  # one per video, shared by all methods
    rows = [
        {
            "method": method,
            "setting": f"knob={number}",
            "prompt": f"a <red> circle number {video} moves left & stops",
            "seed": 3,
            **vars(CONFIG),
            "baseline_denoise_seconds": 2.0,
            "speedup": speedup,
            "psnr": psnr + offset,
            "ssim": (psnr + offset) / 100,
            "vmaf": psnr + offset + 20,
            "device": "cpu, 2 threads",
            "category": "still" if video % 2 else "hectic",
            "learned": method == "clever",
        }
        for method, sweep in SWEEPS.items()
        for number, (speedup, psnr) in enumerate(sweep)
        for video, offset in enumerate(offsets)
    ]
    return pd.DataFrame(rows)


@pytest.fixture(scope="module")
def results() -> pd.DataFrame:
    """Four methods on six videos."""
    return make_results()


def make_frames(shift: int = 0, noise: float = 0) -> np.ndarray:
    """A square that moves: uint8 (8, 64, 64, 3)."""
    frames = np.full((8, 64, 64, 3), 40.0)
    for time, frame in enumerate(frames):
        frame[20:40, 4 + 5 * time + shift : 24 + 5 * time + shift] = (220, 60, 40)
    frames += np.random.default_rng(0).normal(0, noise, frames.shape)
    return frames.clip(0, 255).astype(np.uint8)


def make_showcase(folder: Path) -> None:
    plan = np.zeros((20, 12), dtype=np.uint8)
    plan[4::2] = 1
    forecast = plan.copy()
    forecast[5::3] = 2
    videos = {
        "foresight": Kept("threshold=0.5", 2.03, 31.2, 0.5, False, make_frames(1, 4), plan),
        "clever": Kept("speedup=2", 2.01, 44.5, 0.48, True, make_frames(0, 2), forecast),
    }
    write_showcase(folder, "a <red> square moves right", 3, CONFIG, make_frames(), videos)


def test_curve_means_and_envelope(results: pd.DataFrame) -> None:
    curve = curves.speed_quality_curve(results, "foresight", "psnr")
    assert curve["speedup"].tolist() == pytest.approx([1.2, 1.6, 1.9, 2.1, 2.4])
    assert curve["psnr"].tolist() == pytest.approx([45, 40, 30, 34, 32])
    assert curve["on_envelope"].tolist() == [True, True, False, True, True]
    assert (curve["num_videos"] == 6).all()


def test_at_speedup_interpolates_the_envelope_only() -> None:
    speedups, quality = np.array([1.2, 1.6, 1.9, 2.1]), np.array([45.0, 40.0, 30.0, 34.0])
    assert curves.at_speedup(speedups, quality, 1.4) == pytest.approx(42.5)
    assert curves.at_speedup(speedups, quality, 1.85) == pytest.approx(37.0)  # not through 30
    assert curves.at_speedup(speedups, quality, 2.1) == pytest.approx(34.0)
    assert np.isnan(curves.at_speedup(speedups, quality, 2.11))
    assert np.isnan(curves.at_speedup(speedups, quality, 1.19))
    slow_and_bad = np.array([30.0, 40.0, 20.0, 34.0])  # the slowest setting is dominated
    assert curves.at_speedup(speedups, slow_and_bad, 1.3) == pytest.approx(40.0)


def test_at_equal_speed_by_hand(results: pd.DataFrame) -> None:
    table = curves.at_equal_speed(results, (1.5, 2.0, 3.0)).set_index(["method", "speedup"])
    assert table.loc[("clever", 2.0), "value"] == pytest.approx(44)
    heuristic = 40 + (34 - 40) * (2.0 - 1.6) / (2.1 - 1.6)
    assert table.loc[("foresight", 2.0), "value"] == pytest.approx(heuristic)
    assert table.loc[("foresight", 2.0), "gain"] == pytest.approx(44 - heuristic)
    assert np.isnan(table.loc[("foresight", 3.0), "value"])
    assert np.isnan(table.loc[("clever", 2.0), "gain"])
    # videos differ by up to 2 dB either way, but alike for both methods: the paired gain is exact
    row = table.loc[("static", 2.0)]
    assert row["high"] - row["low"] > 1
    assert (row["gain_low"], row["gain_high"]) == pytest.approx((11, 11))


def test_at_equal_speed_without_a_learned_method(results: pd.DataFrame) -> None:
    table = curves.at_equal_speed(results[~results["learned"]])
    assert table["gain"].isna().all()
    assert report.headline(table, None) is None


def test_showcase_prefers_quality_near_two_times() -> None:
    frames, plan = make_frames(), np.zeros((2, 2), dtype=np.uint8)
    kept: dict[str, Kept] = {}
    for speedup, psnr in ((1.5, 50.0), (2.1, 30.0), (1.9, 33.0), (2.6, 40.0)):
        for method in ("foresight", "static"):
            keep_best(kept, method, Kept("", speedup, psnr, 0.5, False, frames, plan))
    assert [video.psnr for video in kept.values()] == [33.0]


def test_encoded_clip_has_every_frame(tmp_path: Path) -> None:
    encode(make_frames(), tmp_path / "clip.mp4", 4)
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", "-i", "clip.mp4"]
    command += ["-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    raw = subprocess.run(command, cwd=tmp_path, capture_output=True, check=True).stdout
    decoded = np.frombuffer(raw, np.uint8).reshape(-1, 256, 256, 3)
    assert len(decoded) == 8
    assert np.abs(decoded[:, 2::4, 2::4].astype(int) - make_frames()).mean() < 3


def test_page_is_one_offline_file(tmp_path: Path, results: pd.DataFrame) -> None:
    results.to_parquet(tmp_path / "results.parquet")
    make_showcase(tmp_path / "showcase" / "one")
    page = report.write_report(tmp_path).read_text("utf-8")
    assert not re.search(r"https?://|url\((?!#)|@import|<link|src=\"(?!data:)", page)
    assert page.count("<video") == 5
    assert page.count("<svg") == 5  # three curves, two plans
    assert "8.8&nbsp;dB closer" in page
    assert "&lt;red&gt;" in page
    assert "<red>" not in page
    assert read_showcases(tmp_path / "showcase")[0]["methods"]["clever"]["psnr"] == 44.5


def test_page_of_built_ins_only(results: pd.DataFrame) -> None:
    page = report.render(results[~results["learned"]], [], {})
    assert "<video" not in page
    assert "Static cadence" in page


def test_no_results_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(report.UserError, match="no readable results"):
        report.write_report(tmp_path)
    (tmp_path / "results.parquet").write_bytes(b"PAR1 cut short")
    with pytest.raises(report.UserError, match="no readable results"):
        report.write_report(tmp_path)
