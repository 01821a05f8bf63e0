"""Reading a generation's settings from the first call of its transformer."""

import inspect
from typing import Any

import numpy as np
import torch

from foresight.config import GenerationConfig


def generation_config(pipe: Any, latents: torch.Tensor, num_steps: int) -> GenerationConfig:
    """The configuration behind latents (B, C, F, h, w), from the pipeline's VAE scale factors."""
    frames, height, width = latents.shape[-3:]
    spatial = getattr(pipe, "vae_scale_factor", None) or getattr(
        pipe, "vae_scale_factor_spatial", 1
    )
    temporal = getattr(pipe, "vae_scale_factor_temporal", 1)
    return GenerationConfig(
        height=height * spatial,
        width=width * spatial,
        num_frames=(frames - 1) * temporal + 1,
        num_inference_steps=num_steps,
        guidance_scale=float(getattr(pipe, "guidance_scale", 1.0)),
    )


def pooled_prompt(transformer: torch.nn.Module, args: tuple, kwargs: dict) -> np.ndarray:
    """The prompt's text embedding (D,), averaged over its tokens.

    With CFG branches fused in one batch the prompt's row is the last; with separate calls the
    prompt comes first. Zero rows (padding that a pipeline has masked) do not count.
    """
    text = kwargs.get("encoder_hidden_states")
    if text is None:
        names = list(inspect.signature(type(transformer).forward).parameters)[1:]
        text = args[names.index("encoder_hidden_states")]
    row = text[-1].detach().float()
    used = (row.abs().sum(dim=-1, keepdim=True) > 0).float()
    return ((row * used).sum(dim=0) / used.sum().clamp(min=1)).cpu().numpy()
