"""Second stage of the recipe: transformer and text encoder on latents, with averaged weights."""

import copy
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import LattePipeline
from tqdm.auto import tqdm

from foresight.models.autoencoder import SIZES, encode_pool, learning_rate, load_state, save_state

TEXT_LENGTH = 32  # no caption is longer; one length for one compiled graph


def make_optimizers(modules: list[torch.nn.Module]) -> list[tuple[torch.optim.Optimizer, float]]:
    """Muon for the matrices inside blocks, AdamW for the rest; each with its peak learning rate."""
    matrices, rest = [], []
    for module in modules:
        for name, parameter in module.named_parameters():
            inside = parameter.ndim == 2 and ("blocks" in name or ".block." in name)
            is_matrix = inside and "relative" not in name and "scale_shift" not in name
            (matrices if is_matrix else rest).append(parameter)
    return [
        (torch.optim.Muon(matrices, lr=0, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"), 3e-3),
        (torch.optim.AdamW(rest, lr=0, betas=(0.9, 0.98), weight_decay=0.0), 1.5e-3),
    ]


class DenoisingLoss(torch.nn.Module):
    """v-prediction, conditioned as LattePipeline does it.

    Low noise counts less, in the manner of min-SNR-5 weights (Hang et al. 2023); high noise, where
    a small redundant latent decides what it shows, keeps its full weight.

    The pipeline cuts prompt and empty prompt at the prompt's length, so the same positions are
    attended here, through a mask over the padded batch.
    """

    def __init__(self, pipe: LattePipeline) -> None:
        super().__init__()
        self.tokenizer, self.text_encoder = pipe.tokenizer, pipe.text_encoder
        self.transformer = pipe.transformer
        self.register_buffer("alphas", pipe.scheduler.alphas_cumprod, persistent=False)

    def forward(
        self, latents: torch.Tensor, captions: list[str], rng: torch.Generator
    ) -> torch.Tensor:
        """Loss of clean latents (B, C, F, h, w) and their captions; chance comes from `rng`."""
        device, batch = latents.device, latents.shape[0]
        pad = {"padding": "max_length", "max_length": TEXT_LENGTH, "return_tensors": "pt"}
        full = self.tokenizer(captions, **pad)
        dropped = torch.rand(batch, generator=rng) < 0.12
        shown = ["" if drop else text for text, drop in zip(captions, dropped, strict=True)]
        tokens = self.tokenizer(shown, **pad).to(device)
        embeds = self.text_encoder(**tokens)[0]
        bias = (1.0 - full.attention_mask.to(device, embeds.dtype))[:, None] * -1e4
        # Stratified timesteps: one per equal slice, so that every batch sees the whole range.
        slices = torch.randperm(batch, generator=rng) + torch.rand(batch, generator=rng)
        timesteps = (slices / batch * 1000).long().clamp(max=999).to(device)
        alpha = self.alphas[timesteps].view(-1, 1, 1, 1, 1)
        noise = torch.randn(latents.shape, generator=rng).to(device)
        noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
        target = alpha.sqrt() * noise - (1 - alpha).sqrt() * latents
        predicted = self.transformer(
            noisy,
            timestep=timesteps,
            encoder_hidden_states=embeds,
            encoder_attention_mask=bias.repeat_interleave(latents.shape[2], dim=0),
        ).sample.chunk(2, dim=1)[0]
        snr = (alpha / (1 - alpha)).flatten()
        weight = (snr + 1).clamp(max=5.0) / (snr + 1)
        return (weight * (predicted.float() - target).pow(2).mean(dim=(1, 2, 3, 4))).mean()


def train_denoiser(
    pipe: LattePipeline,
    work: Path,
    *,
    steps: int,
    batch_size: int,
    pool_parts: int,
    part_size: int,
    device: torch.device,
) -> None:
    """Train transformer and text encoder together; `pipe` ends with the averaged weights.

    A new part of the pool is rendered every now and then, so training starts at once.
    """
    path = work / "denoiser.pt"
    objective = DenoisingLoss(pipe).to(device).train()
    average = copy.deepcopy(objective).eval().requires_grad_(False)
    optimizers = make_optimizers([pipe.transformer, pipe.text_encoder])
    eager = pipe.transformer.forward
    pipe.transformer.forward = torch.compile(eager, dynamic=False)
    parts = [
        encode_pool(pipe.vae, work, p, count=part_size, device=device) for p in range(len(SIZES))
    ]
    state = load_state(path)
    start = 0
    if state is not None:
        objective.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        for (optimizer, _), stored in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(stored)
        start = state["step"]
    deviation = torch.cat([part["latents"].float().flatten() for part in parts]).std().item()
    pipe.vae.register_to_config(scaling_factor=round(1 / deviation, 4))
    every = max(1, steps // 2 // pool_parts)  # the pool is complete after half of the steps
    bar = tqdm(range(start, steps), initial=start, total=steps, desc="denoiser")
    losses, saved = [], time.monotonic()
    for step in bar:
        while len(parts) < min(pool_parts, len(SIZES) + step // every):
            parts.append(encode_pool(pipe.vae, work, len(parts), count=part_size, device=device))
        rng = torch.Generator().manual_seed(step)
        part = parts[int(torch.randint(len(parts), (), generator=rng))]
        picks = torch.randperm(len(part["captions"]), generator=rng)[:batch_size]
        latents = part["latents"][picks].float().to(device) * pipe.vae.config.scaling_factor
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type != "cpu"):
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
        if time.monotonic() - saved > 120 or step + 1 == steps:
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
    pipe.transformer.forward = eager
    objective.load_state_dict(average.state_dict())
    objective.eval()
