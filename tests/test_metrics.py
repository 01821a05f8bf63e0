"""Metrics against closed forms, scikit-image, and what they must do."""

import math

import numpy as np
import pytest

from foresight import metrics


@pytest.fixture(scope="module")
def video() -> np.ndarray:
    """A smooth moving pattern, uint8 (8, 64, 64, 3)."""
    y, x = np.mgrid[:64, :64]
    frames = [
        np.stack([128 + 90 * np.sin((x + 3 * t) / 5), 128 + 90 * np.cos((y + t) / 7), 2.0 * x], -1)
        for t in range(8)
    ]
    return np.stack(frames).clip(0, 255).astype(np.uint8)


def noisy(video: np.ndarray, scale: float) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, scale, video.shape)
    return (video + noise).clip(0, 255).astype(np.uint8)


def test_psnr_is_the_closed_form() -> None:
    reference = np.full((4, 16, 16, 3), 100, dtype=np.uint8)
    video = reference.copy()
    video[:2] += 4  # half of the frames off by 4: the video's MSE is 8, not a mean of per-frame dB
    assert metrics.psnr(reference, video) == pytest.approx(10 * math.log10(255**2 / 8), abs=1e-4)
    assert metrics.psnr(video, reference) == metrics.psnr(reference, video)


def test_identical_videos(video: np.ndarray) -> None:
    assert metrics.psnr(video, video.copy()) == metrics.PSNR_CAP
    assert metrics.ssim(video, video.copy()) == pytest.approx(1)
    assert metrics.vmaf(video, video.copy()) > 95


def test_ssim_equals_scikit_image(video: np.ndarray) -> None:
    structural_similarity = pytest.importorskip("skimage.metrics").structural_similarity

    other = noisy(video, 12)
    expected = np.mean([
        structural_similarity(
            a, b, channel_axis=-1, data_range=255,
            gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
        )
        for a, b in zip(video, other, strict=True)
    ])  # fmt: skip
    assert metrics.ssim(video, other) == pytest.approx(expected, abs=1e-6)


def test_every_metric_falls_as_noise_grows(video: np.ndarray) -> None:
    for metric in (metrics.psnr, metrics.ssim, metrics.vmaf):
        scores = [metric(video, noisy(video, scale)) for scale in (2, 5, 10, 20)]
        assert scores == sorted(scores, reverse=True), metric.__name__
        assert len(set(scores)) == len(scores)


def test_vmaf_takes_odd_and_large_frames(video: np.ndarray) -> None:
    odd = video[:3, :51, :63]
    large = np.repeat(np.repeat(video[:3], 3, axis=1), 3, axis=2)
    assert metrics.vmaf(odd, odd) > 95
    assert metrics.vmaf(large, large) > 95


def test_lpips_is_nan_without_its_package(
    video: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "_lpips_network", lambda: None)
    assert math.isnan(metrics.lpips(video, video))


@pytest.mark.parametrize("name", ["psnr", "ssim", "vmaf", "lpips"])
def test_videos_must_match(name: str, video: np.ndarray) -> None:
    with pytest.raises(ValueError, match="of one shape"):
        getattr(metrics, name)(video, video[:4])
    with pytest.raises(ValueError, match="uint8"):
        getattr(metrics, name)(video, video.astype(np.float32))


def test_bootstrap_interval_of_a_mean() -> None:
    values = np.random.default_rng(1).normal(3, 1, size=400)
    low, high = metrics.bootstrap_interval(values, seed=0)
    half_width = 1.96 * values.std() / math.sqrt(len(values))
    assert low == pytest.approx(values.mean() - half_width, abs=0.02)
    assert high == pytest.approx(values.mean() + half_width, abs=0.02)
    assert metrics.bootstrap_interval(values, seed=0) == (low, high)
    assert math.isnan(metrics.bootstrap_interval(np.array([1.0]))[0])
