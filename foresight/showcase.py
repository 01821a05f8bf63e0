"""The clips and plans a report shows: a few prompts, each method at its best for some speeds."""

import dataclasses
import json
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from foresight.config import GenerationConfig, UserError

HEURISTIC = "foresight"  # what the learned policy is shown beside
STOPS = (1.25, 1.5, 2.0, 2.5, 3.0)  # speed-ups a reader can ask for
HEADLINE_SPEEDUP = 2.0  # the stop shown first
NEAR = 0.1  # settings within this share of the target compete by quality, others by distance
FPS = 8
CLIP_CRF, ERROR_CRF = 19, 23  # of x264; amplified errors cost more and need be less exact
# Pixels. Small clips are enlarged by a whole factor up to the first, so that 4:2:0 chroma costs
# little; large ones are made as small as the second, which is about what a page shows of them.
SMALL_SHORT_SIDE, LARGE_SHORT_SIDE = 128, 256


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

    def rank(self, target: float) -> tuple[float, float]:
        """Smaller is the better choice: near the target speed-up, then the higher PSNR."""
        distance = abs(self.speedup - target) / target
        return (0.0 if distance <= NEAR else distance), -self.psnr


def keep_best(kept: dict[str, dict[float, Kept]], method: str, candidate: Kept) -> None:
    """Keep the candidate at each stop that it serves better than what is kept there.

    Args:
        kept: By method and stop; changed in place.
        method: The candidate's; one that the report does not show is passed over.
        candidate: A video of it.
    """
    if not candidate.learned and method != HEURISTIC:
        return
    held = kept.setdefault(method, {})
    for stop in STOPS:
        if stop not in held or candidate.rank(stop) < held[stop].rank(stop):
            held[stop] = candidate


def write_showcase(
    folder: Path,
    prompt: str,
    seed: int,
    config: GenerationConfig,
    reference: np.ndarray,
    kept: dict[str, dict[float, Kept]],
) -> None:
    """Write one prompt's clips (mp4), plans (npz) and facts (JSON, last: it marks completeness).

    A video that serves several stops is written once.

    Args:
        folder: Made if missing.
        prompt: What the videos show.
        seed: Of the initial noise.
        config: Of the generation.
        reference: The uncached video, uint8 (F, H, W, 3).
        kept: By method and stop, as `keep_best` leaves it; all errors are amplified alike.
    """
    folder.mkdir(parents=True, exist_ok=True)
    clips: dict[str, list[dict[str, Any]]] = {}
    videos: dict[str, Kept] = {}
    for method, held in kept.items():
        named = {f"{method}.{number}": video for number, video in enumerate(_distinct(held))}
        clips[method] = [_facts(name, video, held) for name, video in named.items()]
        videos |= named
    amplification = _amplification(reference, [h[HEADLINE_SPEEDUP] for h in kept.values()])
    encode(reference, folder / "uncached.mp4")
    for name, video in videos.items():
        encode(video.frames, folder / f"{name}.mp4")
        shown = (_difference(reference, video) * amplification).clip(0, 255).astype(np.uint8)
        encode(shown, folder / f"{name}.difference.mp4", ERROR_CRF)
    plans: dict[str, Any] = {name: video.actions for name, video in videos.items()}
    np.savez_compressed(folder / "plans.npz", **plans)
    facts = {
        "prompt": prompt,
        "seed": seed,
        "config": dataclasses.asdict(config),
        "amplification": amplification,
        "num_frames": len(reference),
        "fps": FPS,
        "clips": clips,
    }
    (folder / "showcase.json").write_text(json.dumps(facts, indent=2) + "\n", "utf-8")


def read_showcases(folder: Path) -> list[dict]:
    """The facts of every complete showcase below `folder`, each with its `folder` and `plans`.

    Raises:
        UserError: If one was written by a version that kept other clips.
    """
    showcases = []
    for path in sorted(folder.glob("*/showcase.json")):
        facts = json.loads(path.read_text("utf-8"))
        if "clips" not in facts:
            raise UserError(f"{path} is of an older version; compare again into another folder")
        with np.load(path.parent / "plans.npz", allow_pickle=False) as plans:
            facts["plans"] = {name: plans[name] for name in plans.files}
        showcases.append({**facts, "folder": path.parent})
    return showcases


def encode(frames: np.ndarray, path: Path, crf: int = CLIP_CRF) -> None:
    """Write H.264 in mp4, every frame a key frame so that a page can seek to any of them.

    Args:
        frames: Uint8 (F, H, W, 3).
        path: Of the mp4, whose short side is brought towards `SMALL_SHORT_SIDE` by repeating
            pixels, or down to `LARGE_SHORT_SIDE` by averaging.
        crf: Constant rate factor of x264; a larger one gives a smaller, coarser file.

    Raises:
        RuntimeError: If ffmpeg fails, with what it said.
    """
    import imageio_ffmpeg

    _, height, width, _ = frames.shape
    short = min(height, width)
    scale = min(max(1, SMALL_SHORT_SIDE // short), LARGE_SHORT_SIDE / short)
    size = f"{round(width * scale)}:{round(height * scale)}"
    how = "area" if scale < 1 else "neighbor"
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-loglevel", "error", "-y"]
    command += ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", str(FPS)]
    command += ["-i", "-", "-vf", f"scale={size}:flags={how},"]
    command[-1] += "pad=ceil(iw/2)*2:ceil(ih/2)*2,scale=out_color_matrix=bt709:out_range=tv"
    command += ["-c:v", "libx264", "-pix_fmt", "yuv420p", "-crf", str(crf), "-g", "1"]
    command += ["-colorspace", "bt709", "-color_trc", "bt709", "-color_primaries", "bt709"]
    command += ["-movflags", "+faststart", str(path)]
    pixels = np.ascontiguousarray(frames).tobytes()
    done = subprocess.run(command, input=pixels, capture_output=True, check=False)
    if done.returncode:
        raise RuntimeError(f"ffmpeg could not write {path}: {done.stderr.decode().strip()[-500:]}")


def _distinct(held: dict[float, Kept]) -> list[Kept]:
    """The videos kept for one method, in the order of their first stop, each once."""
    return list({id(held[stop]): held[stop] for stop in sorted(held)}.values())


def _facts(name: str, video: Kept, held: dict[float, Kept]) -> dict[str, Any]:
    """What the report says of a clip, with the stops that show it."""
    names = ("setting", "speedup", "psnr", "compute_fraction", "learned")
    stops = [stop for stop, kept in sorted(held.items()) if kept is video]
    return {"name": name, "stops": stops, **{n: getattr(video, n) for n in names}}


def _difference(reference: np.ndarray, video: Kept) -> np.ndarray:
    return np.abs(video.frames.astype(np.int16) - reference)


def _amplification(reference: np.ndarray, videos: Iterable[Kept]) -> int:
    """A power of two that makes the large errors of the worst of some videos visible."""
    differences = (_difference(reference, video) for video in videos)
    largest = max((float(np.quantile(d, 0.995)) for d in differences), default=255.0)
    return int(2 ** np.clip(np.floor(np.log2(255 / max(largest, 1.0))), 0, 5))
