"""Loading pipelines, and running one generation through the runtime."""

import contextlib
import dataclasses
import importlib
import inspect
import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import is_accelerate_available
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from foresight.config import GenerationConfig, UserError
from foresight.peers import PeerPolicy
from foresight.peers.session import PeerSession
from foresight.policies.base import Generation, Policy
from foresight.policies.fixed import NonePolicy
from foresight.record import Report
from foresight.session import Session, Tap


def load_pipeline(
    model: str | Path, *, device: str | None = None, dtype: torch.dtype | None = None
) -> DiffusionPipeline:
    """Load a diffusers pipeline: onto the GPU in bf16 if there is one, else the CPU in fp32.

    Raises:
        UserError: If `model` is no pipeline.
    """
    target = device or ("cuda" if torch.cuda.is_available() else "cpu")
    kind = dtype or (torch.bfloat16 if target.startswith("cuda") else torch.float32)
    try:
        with _no_progress_bars():
            pipe = _pipeline_class(model).from_pretrained(
                str(model), dtype=kind, low_cpu_mem_usage=is_accelerate_available()
            )
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"--model {model} is not a diffusers pipeline folder or hub id: {reason}"
        ) from error
    pipe.set_progress_bar_config(disable=True)
    pipe.foresight_id = str(model)
    return pipe.to(target)


def _pipeline_class(model: str | Path) -> type[DiffusionPipeline]:
    """The class to load a folder with: ours where diffusers has none of that name (Open-Sora)."""
    path = Path(model) / "model_index.json"
    index = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    name = index.get("_class_name", "") if isinstance(index, dict) else ""
    ours = importlib.import_module("foresight.models")  # by name: it lies above this module
    return getattr(ours, name) if name in ours.__all__ else DiffusionPipeline


@contextlib.contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Keep the loaders' bars out of stderr, where an error that follows is one line."""
    libraries = [
        library
        for library in (diffusers_logging, transformers_logging)
        if library.is_progress_bar_enabled()
    ]
    for library in libraries:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library in libraries:
            library.enable_progress_bar()


@dataclasses.dataclass(frozen=True)
class Generated:
    """One generation.

    Attributes:
        frames: uint8 (F, H, W, 3), before any video codec.
        latents: Final latents, as the pipeline has them.
        text_seconds, denoise_seconds, vae_seconds: Before, in and after the denoising loop.
        wall_seconds: All of it.
        report: Of the session.
        generation: What was known of it before its first step.
    """

    frames: np.ndarray
    latents: torch.Tensor
    text_seconds: float
    denoise_seconds: float
    vae_seconds: float
    wall_seconds: float
    report: Report
    generation: Generation


@torch.no_grad()
def generate(
    pipe: Any,
    prompt: str,
    config: GenerationConfig,
    *,
    seed: int,
    policy: Policy | None = None,
    tap: Tap | None = None,
) -> Generated:
    """Generate one video under a policy (everything computed by default).

    The noise comes from a CPU generator, so that a seed means the same on any device.

    Raises:
        UserError: If the model does not take this configuration.
    """
    policy = policy or NonePolicy()
    original = pipe.scheduler
    config, pipe.scheduler = policy.reconfigure(pipe, config)

    def run(seed: int, output_type: str) -> Any:
        generator = torch.Generator("cpu").manual_seed(seed)
        arguments = call_arguments(pipe, config)
        return pipe(prompt, generator=generator, output_type=output_type, **arguments)

    session: Session | PeerSession | None = None
    try:
        try:
            if isinstance(policy, PeerPolicy):
                policy = policy.prepared(pipe, config, lambda: run(0, "latent"))
                session = PeerSession(pipe, policy).enable()
            else:
                session = Session(pipe, policy, tap=tap).enable()
            started = time.perf_counter()
            output = run(seed, "np")
        except UserError:
            raise
        except (ValueError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"the model does not generate {config}: {reason}") from error
        ended = time.perf_counter()
        clock, generation = session.clock, session.generation
        assert generation is not None
        assert clock.sample is not None
        return Generated(
            frames=(np.asarray(output.frames[0]) * 255).round().astype(np.uint8),
            latents=clock.sample,
            text_seconds=clock.started - started,
            denoise_seconds=clock.finished - clock.started,
            vae_seconds=ended - clock.finished,
            wall_seconds=ended - started,
            report=session.report(),
            generation=generation,
        )
    finally:
        if session is not None:
            session.disable()
        pipe.scheduler = original


def call_arguments(pipe: Any, config: GenerationConfig) -> dict[str, Any]:
    """A configuration as the pipeline's own keyword arguments.

    Text is padded no further than the tokenizer's `model_max_length`: a model that attends to the
    padding, as Wan does, must get as much of it as it was trained with.
    """
    arguments = dataclasses.asdict(config)
    known = inspect.signature(type(pipe).__call__).parameters
    if "video_length" in known:
        arguments["video_length"] = arguments.pop("num_frames")
    if "max_sequence_length" in known:
        longest = pipe.tokenizer.model_max_length
        arguments["max_sequence_length"] = min(known["max_sequence_length"].default, longest)
    return arguments


def write_video(frames: np.ndarray, path: str | Path, *, fps: int = 8, scale: int = 1) -> None:
    """Write frames (F, H, W, 3) as H.264 mp4, enlarged `scale` times; atomically.

    Raises:
        UserError: If the folder cannot be written to.
    """
    import imageio.v3 as iio

    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, partial = tempfile.mkstemp(suffix=".mp4", dir=path.parent)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error
    os.close(handle)
    enlarged = frames.repeat(scale, axis=1).repeat(scale, axis=2)
    iio.imwrite(
        partial, enlarged, plugin="FFMPEG", fps=fps, codec="libx264", quality=9, macro_block_size=2
    )
    Path(partial).chmod(0o644)
    Path(partial).replace(path)
