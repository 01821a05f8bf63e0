"""Curves, tables and kept clips against values by hand; the page is whole and offline."""

import base64
import re
import subprocess
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pandas as pd
import pytest

from foresight import curves, report
from foresight.config import GenerationConfig
from foresight.figures import ACTION_COLOURS, plan_svg
from foresight.showcase import STOPS, Kept, encode, keep_best, read_showcases, write_showcase

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
    """The heuristic at five settings, the learned policy at two that share the stops."""
    plan = np.zeros((20, 12), dtype=np.uint8)
    plan[4::2] = 1
    forecast = plan.copy()
    forecast[5::3] = 2
    kept: dict[str, dict[float, Kept]] = {}
    for number, stop in enumerate(STOPS):
        frames = make_frames(1, 4 + number)
        keep_best(kept, "foresight", Kept("", stop, 31.2 - number, 0.5, False, frames, plan))
    for speedup, psnr, noise in ((1.8, 44.5, 2), (2.9, 36.0, 3)):
        frames = make_frames(0, noise)
        keep_best(kept, "clever", Kept("", speedup, psnr, 0.48, True, frames, forecast))
    write_showcase(folder, "a <red> square moves right", 3, CONFIG, make_frames(), kept)


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


def test_configurations_are_read_one_by_one(results: pd.DataFrame) -> None:
    """A knob that does nothing in one configuration: its 100 dB must not buy speed in another."""
    idle = results[results["method"] == "static"].assign(speedup=1.0, psnr=100.0)
    idle = idle.assign(num_inference_steps=7)
    both = pd.concat([results, results.assign(num_inference_steps=7, psnr=results["psnr"] - 4)])
    means = curves.at_equal_speed(both, (2.0,)).set_index("method")
    apart = curves.at_equal_speed(results, (2.0,)).set_index("method")
    assert means["value"].to_numpy() == pytest.approx(apart["value"].to_numpy() - 2)
    assert means["gain"].to_numpy() == pytest.approx(apart["gain"].to_numpy(), nan_ok=True)
    others = results[results["method"] != "static"].assign(num_inference_steps=7)
    mixed = curves.at_equal_speed(pd.concat([results, others, idle]), (2.0,)).set_index("method")
    assert np.isnan(mixed.loc["static", "value"])
    assert mixed.loc["clever", "value"] == pytest.approx(44)
    page = report.render(both, [], {})
    assert "read off in every configuration" in page
    assert "read off in every configuration" not in report.render(results, [], {})


def test_at_equal_speed_without_a_learned_method(results: pd.DataFrame) -> None:
    table = curves.at_equal_speed(results[~results["learned"]])
    assert table["gain"].isna().all()
    assert report.headline(table, None) is None


def test_kept_settings_by_brute_force() -> None:
    generator = np.random.default_rng(0)
    frames, plan = make_frames(), np.zeros((2, 2), dtype=np.uint8)
    for count in (1, 2, 5, 30):
        pairs = np.stack([generator.uniform(0.9, 4, count), generator.uniform(20, 60, count)], 1)
        videos = [Kept("", speedup, psnr, 0.5, False, frames, plan) for speedup, psnr in pairs]
        kept: dict[str, dict[float, Kept]] = {}
        for video in videos:
            keep_best(kept, "foresight", video)
            keep_best(kept, "static", video)  # not shown
        assert list(kept) == ["foresight"]
        for stop in (1.25, 1.5, 2, 2.5, 3):
            near = [v for v in videos if 0.9 * stop <= v.speedup <= 1.1 * stop]
            best = max(near, key=lambda v: v.psnr, default=None)
            nearest = min(videos, key=lambda v: abs(v.speedup - stop))
            assert kept["foresight"][stop] is (best or nearest)


def test_a_setting_of_several_stops_is_stored_once(tmp_path: Path) -> None:
    make_showcase(tmp_path / "one")
    (showcase,) = read_showcases(tmp_path)
    clever = showcase["clips"]["clever"]
    assert [clip["stops"] for clip in clever] == [[1.25, 1.5, 2.0], [2.5, 3.0]]
    assert [clip["psnr"] for clip in clever] == [44.5, 36.0]
    assert [clip["stops"] for clip in showcase["clips"]["foresight"]] == [[s] for s in STOPS]
    names = {clip["name"] for clips in showcase["clips"].values() for clip in clips}
    assert set(showcase["plans"]) == names
    files = {f"{name}{error}.mp4" for name in names for error in ("", ".difference")}
    assert {path.name for path in (tmp_path / "one").glob("*.mp4")} == files | {"uncached.mp4"}


@pytest.mark.parametrize(("repeat", "shown"), [(1, 128), (8, 256)])
def test_encoded_clip_has_every_frame(tmp_path: Path, repeat: int, shown: int) -> None:
    large = make_frames().repeat(repeat, axis=1).repeat(repeat, axis=2)
    encode(large, tmp_path / "clip.mp4")
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", "-i", "clip.mp4"]
    command += ["-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    raw = subprocess.run(command, cwd=tmp_path, capture_output=True, check=True).stdout
    decoded = np.frombuffer(raw, np.uint8).reshape(-1, shown, shown, 3)
    assert len(decoded) == 8
    factor = shown // 64
    inner = decoded[:, factor // 2 :: factor, factor // 2 :: factor].astype(int)
    assert np.abs(inner - make_frames()).mean() < 3


def test_plan_svg_draws_every_cell() -> None:
    actions = np.random.default_rng(0).integers(0, 3, (20, 12)).astype(np.uint8)
    drawn = np.full((20, 12), 255)
    svg = plan_svg(actions)
    for action, colour in enumerate(ACTION_COLOURS):
        (path,) = re.findall(rf'fill="var\(--c-{colour[1:]}, {colour}\)" d="([^"]*)"', svg)
        for step, block, length, back in re.findall(r"M(\d+) (\d+)h(\d+)v1h-(\d+)z", path):
            assert length == back
            assert (drawn[int(step) : int(step) + int(length), int(block)] == 255).all()
            drawn[int(step) : int(step) + int(length), int(block)] = action
    np.testing.assert_array_equal(drawn, actions)


def test_page_is_one_offline_file(tmp_path: Path, results: pd.DataFrame) -> None:
    results.to_parquet(tmp_path / "results.parquet")
    make_showcase(tmp_path / "showcase" / "one")
    page = report.write_report(tmp_path).read_text("utf-8")
    assert not re.search(r"https?://|url\((?!#)|@import|<link|src=\"(?!data:)", page)
    clips = list((tmp_path / "showcase" / "one").glob("*.mp4"))
    assert len(clips) == 15  # uncached, seven settings and their errors
    assert page.count("data:video") == page.count("<video") == 15
    for clip in clips:
        assert page.count(base64.b64encode(clip.read_bytes()).decode()) == 1
    assert "8.8&nbsp;dB closer" in page
    assert "&lt;red&gt;" in page
    assert "<red>" not in page


def test_dial_serves_every_stop_and_starts_at_two_times(
    tmp_path: Path, results: pd.DataFrame
) -> None:
    make_showcase(tmp_path / "one")
    showcases = read_showcases(tmp_path)
    page = report.render(results, showcases, {})
    slots = page.split('class="slot"')[1:]
    assert len(slots) == 2 + 5 + 2  # what each method reaches, clips, plans
    for slot in slots:
        served = " ".join(re.findall(r'data-stops="([^"]*)"', slot)).split()
        assert sorted(served) == ["1.25", "1.5", "2", "2.5", "3"]
    without_script = re.sub(r"<template>.*?</template>|<script>.*?</script>", "", page, flags=re.S)
    assert all("2" in s.split() for s in re.findall(r'<\w+ data-stops="([^"]*)"', without_script))
    for name in ("uncached", "foresight.2", "foresight.2.difference", "clever.0"):
        clip = (tmp_path / "one" / f"{name}.mp4").read_bytes()
        assert base64.b64encode(clip).decode() in without_script
    assert without_script.count("<video") == 5
    assert without_script.count("<svg") == 3 + 2
    assert without_script.count("<b>1.80x</b> at <b>44.5 dB</b>") == 1
    assert "2.90x" not in without_script
    assert "Learned policy at 2.90x, 36.0 dB" in page


def test_dial_shows_means_over_the_videos(results: pd.DataFrame, tmp_path: Path) -> None:
    frames, plan = make_frames(), np.zeros((2, 2), dtype=np.uint8)
    for number, (speedup, psnr) in enumerate([(1.9, 30.0), (2.2, 37.0)]):
        kept: dict[str, dict[float, Kept]] = {}
        keep_best(kept, "foresight", Kept("", speedup, psnr, 0.5, False, frames, plan))
        write_showcase(tmp_path / str(number), "a", number, CONFIG, frames, kept)
    page = report.render(results, read_showcases(tmp_path), {})
    assert page.count("<b>2.05x</b> at <b>33.5 dB</b>") == 5


def test_clips_of_an_older_version_are_one_clear_error(tmp_path: Path) -> None:
    make_showcase(tmp_path / "one")
    (tmp_path / "one" / "showcase.json").write_text('{"methods": {}}')
    with pytest.raises(report.UserError, match="older version; compare again"):
        read_showcases(tmp_path)


def test_page_without_shown_methods(results: pd.DataFrame, tmp_path: Path) -> None:
    write_showcase(tmp_path / "one", "a", 0, CONFIG, make_frames(), {})
    page = report.render(results[~results["learned"]], read_showcases(tmp_path), {})
    assert "<video" not in page
    assert "Static cadence" in page


def test_no_results_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(report.UserError, match="no readable results"):
        report.write_report(tmp_path)
    (tmp_path / "results.parquet").write_bytes(b"PAR1 cut short")
    with pytest.raises(report.UserError, match="no readable results"):
        report.write_report(tmp_path)
