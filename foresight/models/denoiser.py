"""Second stage of the recipe: transformer and text encoder on latents, with averaged weights."""

import copy
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm.auto import tqdm

from foresight.models.autoencoder import SIZES, encode_pool, learning_rate, load_state, save_state
from foresight.models.latents import fit_scale, scale_latents
from foresight.models.objectives import Objective

SECONDS_BETWEEN_SAVES = 120.0


def make_optimizers(modules: list[torch.nn.Module]) -> list[tuple[torch.optim.Optimizer, float]]:
    """Muon for the matrices inside blocks, AdamW for the rest; each with its peak learning rate.

    What T5's attention adds for the distance of two words must grow far larger than a weight before
    it decides anything, so it learns faster.
    """
    matrices, distances, rest = [], [], []
    for module in modules:
        for name, parameter in module.named_parameters():
            inside = parameter.ndim == 2 and ("blocks" in name or ".block." in name)
            if "relative" in name:
                distances.append(parameter)
            elif inside and "scale_shift" not in name:
                matrices.append(parameter)
            else:
                rest.append(parameter)
    return [
        (torch.optim.Muon(matrices, lr=0, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"), 3e-3),
        (torch.optim.AdamW(distances, lr=0, betas=(0.9, 0.98), weight_decay=0.0), 2e-2),
        (torch.optim.AdamW(rest, lr=0, betas=(0.9, 0.98), weight_decay=0.0), 1.5e-3),
    ]


def compile_in_place(transformer: Any) -> None:
    """Compile the block that repeats; one graph a shape.

    That takes a fraction of the time that the whole takes, and its steps are as fast. Compiled
    whole, Latte is nothing but NaN on a CPU with AMX (torch 2.13).
    """
    if not transformer._repeated_blocks:
        transformer._repeated_blocks = ["BasicTransformerBlock"]  # Latte names none
    transformer.compile_repeated_blocks(dynamic=False)


def attention_for(device: torch.device) -> AbstractContextManager[Any]:
    """Plain attention on a CPU: the backward pass of the fused one takes longer than all else."""
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()


def train_denoiser(
    pipe: Any,
    objective: Objective,
    work: Path,
    *,
    steps: int,
    image_steps: int,
    batch_size: int,
    num_frames: int,
    pool_parts: int,
    part_size: int,
    device: torch.device,
) -> None:
    """Train transformer and text encoder together; `pipe` ends with the averaged weights.

    The first `image_steps` see single frames of as many more clips as take the same arithmetic:
    what a thing looks like is learned from many more pictures (Latte and its forebears train on
    images jointly for the same reason). A new part of the pool is rendered every now and then, so
    training starts at once.
    """
    path = work / "denoiser.pt"
    objective.to(device).train()
    average = copy.deepcopy(objective).eval().requires_grad_(False)
    optimizers = make_optimizers([objective])
    compile_in_place(pipe.transformer)
    pool = {"count": part_size, "num_frames": num_frames, "device": device}
    parts = [encode_pool(pipe.vae, work, number, **pool) for number in range(len(SIZES))]
    state = load_state(path)
    start = 0
    if state is not None:
        objective.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        for (optimizer, _), stored in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(stored)
        start = state["step"]
    fit_scale(pipe.vae, [part["latents"] for part in parts])
    every = max(1, steps // 2 // pool_parts)  # the pool is complete after half of the steps
    bar = tqdm(range(start, steps), initial=start, total=steps, desc="denoiser")
    losses, saved = [], time.monotonic()
    for step in bar:
        while len(parts) < min(pool_parts, len(SIZES) + step // every):
            parts.append(encode_pool(pipe.vae, work, len(parts), **pool))
        rng = torch.Generator().manual_seed(step)
        part = parts[int(torch.randint(len(parts), (), generator=rng))]
        as_images = step < image_steps
        frames = part["latents"].shape[2]
        count = batch_size * (frames // objective.stills_per_clip if as_images else 1)
        picks = torch.randperm(len(part["captions"]), generator=rng)[:count]
        latents = scale_latents(pipe.vae, part["latents"][picks].float().to(device))
        if as_images:
            latents = objective.stills(latents, rng)
        with attention_for(device), torch.autocast(device.type, torch.bfloat16):
            loss = objective(latents, [part["captions"][i] for i in picks], rng)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(objective.parameters(), 1.0)
        for optimizer, peak in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, steps, peak)
            optimizer.step()
            optimizer.zero_grad()
        decay = min(0.998, (step + 1) / (step + 20))
        for mean, value in zip(average.parameters(), objective.parameters(), strict=True):
            mean.lerp_(value, 1 - decay)
        losses.append(loss.item())
        bar.set_postfix(loss=f"{np.mean(losses[-100:]):.4f}", parts=len(parts))
        if time.monotonic() - saved > SECONDS_BETWEEN_SAVES or step + 1 == steps:
            saved = time.monotonic()
            save_state(
                path,
                {
                    "model": objective.state_dict(),
                    "average": average.state_dict(),
                    "optimizers": [optimizer.state_dict() for optimizer, _ in optimizers],
                    "step": step + 1,
                },
            )
    objective.load_state_dict(average.state_dict())
    objective.eval()
