"""How far a video is from the uncached one: PSNR, SSIM, VMAF, LPIPS, and intervals for means."""

import functools
import importlib
import importlib.util
import json
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

PSNR_CAP = 100.0
SSIM_WINDOW = 11
VMAF_SHORT_SIDE = 128  # libvmaf's features need some pixels; smaller clips are enlarged to this
LPIPS_WEIGHTS = "alexnet-owt-7be5be79.pth"


def psnr(reference: np.ndarray, video: np.ndarray) -> float:
    """Peak signal-to-noise ratio of a whole video, from the mean squared error over all frames.

    Args:
        reference: The uncached video, uint8 (F, H, W, 3).
        video: The video to judge, same shape and type.

    Returns:
        Decibels, at most 100 (identical videos).

    Raises:
        ValueError: If the two are not uint8 videos of one shape.
    """
    _check_pair(reference, video)
    error = np.mean((reference.astype(np.float32) - video.astype(np.float32)) ** 2, dtype=float)
    if error == 0:
        return PSNR_CAP
    return float(min(PSNR_CAP, 10 * np.log10(255.0**2 / error)))


def ssim(reference: np.ndarray, video: np.ndarray) -> float:
    """Structural similarity (Gaussian window of 11 pixels, sigma 1.5), mean over frames.

    Args:
        reference: The uncached video, uint8 (F, H, W, 3).
        video: The video to judge, same shape and type.

    Returns:
        A number up to 1 (identical videos).

    Raises:
        ValueError: If the two are not uint8 videos of one shape, or a side is under 11 pixels.
    """
    import torch

    _check_pair(reference, video)
    height, width = reference.shape[1:3]
    if min(height, width) < SSIM_WINDOW:
        raise ValueError(f"ssim needs frames of at least 11x11 pixels, got {height}x{width}")
    offsets = torch.arange(SSIM_WINDOW) - SSIM_WINDOW // 2
    window = torch.exp(-(offsets**2) / (2 * 1.5**2)).double()
    window /= window.sum()
    pairs = zip(torch.from_numpy(reference), torch.from_numpy(video), strict=True)
    scores = [
        _ssim_of_planes(*(frame.permute(2, 0, 1)[:, None].double() for frame in pair), window)
        for pair in pairs
    ]
    return float(torch.stack(scores).mean())


def vmaf(reference: np.ndarray, video: np.ndarray) -> float:
    """VMAF v0.6.1, mean over frames, by the ffmpeg that `imageio-ffmpeg` ships.

    The model is trained on full-HD pictures. Clips whose shorter side is under 128 pixels are both
    enlarged by the same whole factor (bicubic) until it is not, which is also nearer to how they
    are looked at; larger ones are scored as they are. Frames go in raw, before any video codec.

    Args:
        reference: The uncached video, uint8 (F, H, W, 3).
        video: The video to judge, same shape and type.

    Returns:
        A score from 0 to 100.

    Raises:
        ValueError: If the two are not uint8 videos of one shape.
        RuntimeError: If ffmpeg fails, with what it said.
    """
    import imageio_ffmpeg

    _check_pair(reference, video)
    _, height, width, _ = reference.shape
    factor = max(1, -(-VMAF_SHORT_SIDE // min(height, width)))
    scale = (
        f"scale={width * factor}:{height * factor}:flags=bicubic"
        ":out_color_matrix=bt709:out_range=tv,format=yuv420p"
    )
    graph = f"[0:v]{scale}[a];[1:v]{scale}[b];[a][b]libvmaf=log_fmt=json:log_path=log.json"
    raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", "8"]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "video.rgb").write_bytes(np.ascontiguousarray(video).tobytes())
        (Path(folder) / "reference.rgb").write_bytes(np.ascontiguousarray(reference).tobytes())
        inputs = [*raw, "-i", "video.rgb", *raw, "-i", "reference.rgb"]
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-loglevel", "error", *inputs]
        command += ["-lavfi", graph, "-f", "null", "-"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"ffmpeg could not compute VMAF: {done.stderr.strip()[-500:]}")
        log = json.loads((Path(folder) / "log.json").read_text())
    return float(log["pooled_metrics"]["vmaf"]["mean"])


def lpips(reference: np.ndarray, video: np.ndarray) -> float:
    """Learned perceptual distance (AlexNet), mean over frames; NaN where it cannot be computed.

    Needs the optional `lpips` package and the AlexNet weights already in torch hub's folder:
    nothing is downloaded here.

    Args:
        reference: The uncached video, uint8 (F, H, W, 3).
        video: The video to judge, same shape and type.

    Returns:
        A distance from 0 (identical), or NaN without the package or its weights.

    Raises:
        ValueError: If the two are not uint8 videos of one shape.
    """
    _check_pair(reference, video)
    network = _lpips_network()
    if network is None:
        return float("nan")
    import torch

    pair = [torch.from_numpy(v.astype(np.float32)).permute(0, 3, 1, 2) for v in (reference, video)]
    with torch.no_grad():
        return float(network(*(v / 127.5 - 1 for v in pair)).mean())


def bootstrap_interval(
    values: np.ndarray, seed: int = 0, *, confidence: float = 0.95, num_resamples: int = 2000
) -> tuple[float, float]:
    """Percentile bootstrap interval of a mean.

    Args:
        values: (V,) one number per video; NaN are left out.
        seed: Of the resampling.
        confidence: The share of resampled means inside the interval.
        num_resamples: How many times the videos are drawn anew.

    Returns:
        The lower and upper end; both NaN with fewer than two numbers.
    """
    values = np.asarray(values, dtype=float)
    values = values[~np.isnan(values)]
    if len(values) < 2:
        return float("nan"), float("nan")
    draws = np.random.default_rng(seed).integers(len(values), size=(num_resamples, len(values)))
    tail = (1 - confidence) / 2
    low, high = np.quantile(values[draws].mean(axis=1), [tail, 1 - tail])
    return float(low), float(high)


@functools.cache
def _lpips_network() -> "object | None":
    """The LPIPS network, or None where package or weights are missing."""
    if importlib.util.find_spec("lpips") is None:
        return None
    import torch

    if not (Path(torch.hub.get_dir()) / "checkpoints" / LPIPS_WEIGHTS).is_file():
        return None
    return importlib.import_module("lpips").LPIPS(net="alex", verbose=False).eval()


def _ssim_of_planes(x: "torch.Tensor", y: "torch.Tensor", window: "torch.Tensor") -> "torch.Tensor":
    """Mean SSIM of planes (C, 1, H, W) wherever the separable window (K,) fits whole."""
    import torch

    def smooth(planes: torch.Tensor) -> torch.Tensor:  # (C, 1, H-K+1, W-K+1)
        rows = torch.nn.functional.conv2d(planes, window[None, None, :, None])
        return torch.nn.functional.conv2d(rows, window[None, None, None, :])

    mean_x, mean_y = smooth(x), smooth(y)
    variance_x, variance_y = smooth(x * x) - mean_x**2, smooth(y * y) - mean_y**2
    covariance = smooth(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * covariance + c2) / (variance_x + variance_y + c2)
    return (luminance * structure).mean()


def _check_pair(reference: np.ndarray, video: np.ndarray) -> None:
    if reference.shape != video.shape or reference.ndim != 4 or reference.shape[-1] != 3:
        raise ValueError(
            "`reference` and `video` must be (F, H, W, 3) of one shape, "
            f"got {reference.shape} and {video.shape}"
        )
    if reference.dtype != np.uint8 or video.dtype != np.uint8:
        raise ValueError(
            f"`reference` and `video` must be uint8, got {reference.dtype} and {video.dtype}"
        )
