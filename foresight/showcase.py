"""The clips and plans a report shows: a few prompts, each method at its setting nearest to 2x."""

import dataclasses
import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np

from foresight.config import GenerationConfig

HEURISTIC = "foresight"  # what the learned policy is shown beside
TARGET_SPEEDUP = 2.0
NEAR = 0.2  # settings this near to the target compete by quality, others by distance
FPS = 8
SHOWN_SHORT_SIDE = 256  # clips are enlarged by a whole factor up to this many pixels


@dataclasses.dataclass
class Kept:
    """One method's video, kept for the report.

    Attributes:
        frames: Uint8 (F, H, W, 3), before any codec.
        actions: Uint8 (S, N), what was executed.
    """

    setting: str
    speedup: float
    psnr: float
    compute_fraction: float
    learned: bool
    frames: np.ndarray
    actions: np.ndarray

    def rank(self) -> tuple[float, float]:
        """Smaller is the better choice: near the target speed-up, then the higher PSNR."""
        distance = abs(self.speedup - TARGET_SPEEDUP)
        return (0.0 if distance <= NEAR else distance), -self.psnr


def keep_best(kept: dict[str, Kept], method: str, candidate: Kept) -> None:
    """Keep the candidate if the report shows its method, and better at 2x than what is kept."""
    if not candidate.learned and method != HEURISTIC:
        return
    if method not in kept or candidate.rank() < kept[method].rank():
        kept[method] = candidate


def write_showcase(
    folder: Path,
    prompt: str,
    seed: int,
    config: GenerationConfig,
    reference: np.ndarray,
    kept: dict[str, Kept],
) -> None:
    """Write one prompt's clips (mp4), plans (npz) and facts (JSON, last: it marks completeness).

    Args:
        folder: Made if missing.
        prompt: What the videos show.
        seed: Of the initial noise.
        config: Of the generation.
        reference: The uncached video, uint8 (F, H, W, 3).
        kept: One video per method.
    """
    folder.mkdir(parents=True, exist_ok=True)
    factor = max(1, SHOWN_SHORT_SIDE // min(reference.shape[1:3]))
    amplification = _amplification(reference, kept)
    encode(reference, folder / "uncached.mp4", factor)
    for method, video in kept.items():
        encode(video.frames, folder / f"{method}.mp4", factor)
        difference = np.abs(video.frames.astype(np.int16) - reference)
        shown = (difference * amplification).clip(0, 255).astype(np.uint8)
        encode(shown, folder / f"{method}.difference.mp4", factor)
    plans: dict[str, Any] = {method: video.actions for method, video in kept.items()}
    np.savez_compressed(folder / "plans.npz", **plans)
    names = ("setting", "speedup", "psnr", "compute_fraction", "learned")
    facts = {
        "prompt": prompt,
        "seed": seed,
        "config": dataclasses.asdict(config),
        "amplification": amplification,
        "num_frames": len(reference),
        "fps": FPS,
        "methods": {m: {n: getattr(video, n) for n in names} for m, video in kept.items()},
    }
    (folder / "showcase.json").write_text(json.dumps(facts, indent=2) + "\n", "utf-8")


def read_showcases(folder: Path) -> list[dict]:
    """The facts of every complete showcase below `folder`, each with its `folder` and `plans`."""
    showcases = []
    for path in sorted(folder.glob("*/showcase.json")):
        facts = json.loads(path.read_text("utf-8"))
        with np.load(path.parent / "plans.npz", allow_pickle=False) as plans:
            facts["plans"] = {method: plans[method] for method in plans.files}
        showcases.append({**facts, "folder": path.parent})
    return showcases


def encode(frames: np.ndarray, path: Path, factor: int = 1) -> None:
    """Write H.264 in mp4, every frame a key frame so that a page can seek to any of them.

    Args:
        frames: Uint8 (F, H, W, 3).
        path: Of the mp4.
        factor: Whole factor of enlargement by repeating pixels, so that 4:2:0 chroma costs little.

    Raises:
        RuntimeError: If ffmpeg fails, with what it said.
    """
    import imageio_ffmpeg

    _, height, width, _ = frames.shape
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-loglevel", "error", "-y"]
    command += ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", str(FPS)]
    command += ["-i", "-", "-vf", f"scale={width * factor}:{height * factor}:flags=neighbor,"]
    command[-1] += "pad=ceil(iw/2)*2:ceil(ih/2)*2,scale=out_color_matrix=bt709:out_range=tv"
    command += ["-c:v", "libx264", "-pix_fmt", "yuv420p", "-crf", "16", "-g", "1"]
    command += ["-colorspace", "bt709", "-color_trc", "bt709", "-color_primaries", "bt709"]
    command += ["-movflags", "+faststart", str(path)]
    pixels = np.ascontiguousarray(frames).tobytes()
    done = subprocess.run(command, input=pixels, capture_output=True, check=False)
    if done.returncode:
        raise RuntimeError(f"ffmpeg could not write {path}: {done.stderr.decode().strip()[-500:]}")


def _amplification(reference: np.ndarray, kept: dict[str, Kept]) -> int:
    """A power of two, the same for all methods, that makes the worst one's large errors visible."""
    differences = [np.abs(video.frames.astype(np.int16) - reference) for video in kept.values()]
    largest = max((float(np.quantile(d, 0.995)) for d in differences), default=255.0)
    return int(2 ** np.clip(np.floor(np.log2(255 / max(largest, 1.0))), 0, 5))
