"""Reading a generation's settings from the first call of its transformer."""

import inspect
from typing import Any

import numpy as np
import torch

from foresight.blocks import stream_of
from foresight.config import GenerationConfig


def generation_config(
    pipe: Any, transformer: torch.nn.Module, args: tuple, kwargs: dict, num_steps: int
) -> GenerationConfig:
    """The configuration behind a forward pass, in pixels by the pipeline's VAE scale factors."""
    frames, height, width = _latent_grid(transformer, args, kwargs)
    spatial = getattr(pipe, "vae_scale_factor", None) or getattr(
        pipe, "vae_scale_factor_spatial", getattr(pipe, "vae_spatial_compression_ratio", 1)
    )
    temporal = getattr(
        pipe, "vae_scale_factor_temporal", getattr(pipe, "vae_temporal_compression_ratio", 1)
    )
    guidance = getattr(pipe, "guidance_scale", None)
    return GenerationConfig(
        height=height * spatial,
        width=width * spatial,
        num_frames=(frames - 1) * temporal + 1,
        num_inference_steps=num_steps,
        guidance_scale=1.0 if guidance is None else float(guidance),
    )


def _latent_grid(transformer: torch.nn.Module, args: tuple, kwargs: dict) -> tuple[int, int, int]:
    """Frames, height and width of the latents.

    Packed latents (B, tokens, C) come with their grid as keywords (LTX). Of five axes, the channels
    are second, third (CogVideoX) or last (Kandinsky 5): the one that has as many as the model's
    configuration says.
    """
    latents = stream_of(args, kwargs)
    if latents.ndim != 5:
        given = [kwargs.get(name) for name in ("num_frames", "height", "width")]
        grid = [size for size in given if isinstance(size, int)]
        return (grid[0], grid[1], grid[2]) if len(grid) == 3 else (1, 1, latents.shape[1])
    config = getattr(transformer, "config", {})
    wanted = {config.get(name) for name in ("in_channels", "in_visual_dim")} - {None}
    sizes = list(latents.shape[1:])
    axis = next((a for a in (0, 1, 3) if sizes[a] in wanted), 0)
    del sizes[axis]
    return sizes[0], sizes[1], sizes[2]


def stream_bytes(args: tuple, kwargs: dict) -> int:
    """Bytes of the latents that a forward pass is called with; of video and sound, of both."""
    streams = [
        value
        for name, value in kwargs.items()
        if name.endswith("hidden_states") and "encoder" not in name
    ]
    tensors = [value for value in streams if isinstance(value, torch.Tensor)]
    return sum(tensor.nbytes for tensor in tensors or [stream_of(args, kwargs)])


def branches_apart(args: tuple, kwargs: dict, branch: str | None, guidance_scale: float) -> bool:
    """Whether CFG branches come in several forward passes.

    Args:
        args: Of the first of them, for one prompt.
        kwargs: Likewise.
        branch: What the pipeline calls it, if it says so.
        guidance_scale: Of the generation.
    """
    if guidance_scale <= 1:
        return False
    single = len(stream_of(args, kwargs)) % 2 == 1
    return single or branch not in (None, "cond_uncond")


def pooled_prompt(transformer: torch.nn.Module, args: tuple, kwargs: dict) -> np.ndarray:
    """The prompt's text embedding (D,), averaged over its tokens; empty if the model takes none.

    With CFG branches fused in one batch the prompt's row is the last; with separate calls the
    prompt comes first. Zero rows (padding that a pipeline has masked) do not count.
    """
    text = kwargs.get("encoder_hidden_states")
    if text is None:
        names = list(inspect.signature(type(transformer).forward).parameters)[1:]
        place = names.index("encoder_hidden_states") if "encoder_hidden_states" in names else -1
        text = args[place] if 0 <= place < len(args) else None
    if isinstance(text, (list, tuple)):  # several text encoders: the first one's
        text = text[0]
    if not isinstance(text, torch.Tensor):
        return np.zeros(0, np.float32)
    row = text[-1].detach().float()
    row = row.reshape(-1, row.shape[-1])
    used = (row.abs().sum(dim=-1, keepdim=True) > 0).float()
    return ((row * used).sum(dim=0) / used.sum().clamp(min=1)).cpu().numpy()
