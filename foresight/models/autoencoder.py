"""First stage of the recipe: the VAE, on single frames and then on clips; clips as latents."""

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, AutoencoderKLWan
from torch.nn import functional
from tqdm.auto import tqdm

from foresight.models import clips
from foresight.models.latents import decode, encode

SIZES = ((64, 64), (64, 64), (64, 96))  # two thirds square, one third wide


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up, constant, linear decay over the last fifth."""
    return peak * min(1.0, (step + 1) / 100, max(0.02, (steps - step) / (0.2 * steps)))


def save_state(path: Path, state: dict) -> None:
    """Write training state so that a kill at any moment leaves the old or the new file."""
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)


def load_state(path: Path) -> dict | None:
    """Read training state; None if there is none. Runs no code that a file may hold."""
    return torch.load(path, map_location="cpu", weights_only=True) if path.exists() else None


def draw_clips(
    count: int, seed: int, size: tuple[int, int], num_frames: int
) -> tuple[np.ndarray, list[str]]:
    """`count` rendered clips (count, frames, height, width, 3) in uint8, and their captions."""
    rng = np.random.default_rng(seed)
    scenes = [clips.sample_scene(rng) for _ in range(count)]
    frames = [
        clips.render(s, rng, num_frames=num_frames, height=size[0], width=size[1]) for s in scenes
    ]
    return np.stack(frames), [clips.caption(s) for s in scenes]


def to_pixels(frames: np.ndarray, device: torch.device) -> torch.Tensor:
    """uint8 (n, frames, height, width, 3) to float (n, 3, frames, height, width) in [-1, 1]."""
    return torch.from_numpy(frames).to(device).permute(0, 4, 1, 2, 3).float() / 127.5 - 1


def reconstruction_loss(decoded: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    """L1 and L2, with L1 on edges for sharpness and on 4x4 means for colour; over (..., h, w)."""
    loss = functional.l1_loss(decoded, pixels) + 2 * functional.mse_loss(decoded, pixels)
    for dim in (-2, -1):
        loss = loss + 0.5 * functional.l1_loss(decoded.diff(dim=dim), pixels.diff(dim=dim))
    pooled = (functional.avg_pool2d(images.flatten(1, 2), 4) for images in (decoded, pixels))
    return loss + functional.l1_loss(*pooled)


def train_vae(
    vae: AutoencoderKL | AutoencoderKLWan,
    work: Path,
    *,
    steps: int,
    clip_steps: int,
    batch_size: int,
    num_frames: int,
    device: torch.device,
) -> None:
    """Train the VAE on `reconstruction_loss` and a very light KL.

    All steps but the last `clip_steps` see `batch_size` single frames each, those see a quarter as
    many clips.
    """
    path = work / "vae.pt"
    stills = steps - clip_steps
    optimizer = torch.optim.AdamW(vae.parameters(), lr=0, betas=(0.9, 0.95), weight_decay=0.0)
    state = load_state(path)
    start = 0
    if state is not None:
        vae.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        start = state["step"]
    vae.to(device).train()
    if isinstance(vae, AutoencoderKL):
        vae.to(memory_format=torch.channels_last)
    bar = tqdm(range(start, steps), initial=start, total=steps, desc="VAE")
    for step in bar:
        if step == start or step % 16 == 0:
            drawn = draw_clips(32, 10_000_000 + step, (64, 64), num_frames)[0]
        as_clips = step >= stills
        shown = drawn if as_clips else drawn.reshape(-1, 1, 64, 64, 3)
        count = batch_size // 4 if as_clips else batch_size
        picks = np.random.default_rng(step).permutation(len(shown))[:count]
        pixels = to_pixels(shown[picks], device)
        with torch.autocast(device.type, torch.bfloat16):
            posterior = encode(vae, pixels)
            mean = posterior.mode()
            decoded = decode(vae, mean + 0.03 * torch.randn_like(mean)).float()
        loss = reconstruction_loss(decoded, pixels)
        divergence = 0.5 * (mean**2 + posterior.var - 1 - posterior.logvar).sum()
        frames = pixels.shape[0] * pixels.shape[2]
        (loss + 1e-7 * divergence / frames).backward()  # any more empties channels
        for group in optimizer.param_groups:
            if as_clips:  # gently: the weights that see the past have had no gradient yet
                group["lr"] = learning_rate(step - stills, clip_steps, 5e-4)
            else:
                group["lr"] = learning_rate(step, stills, 1.5e-3)
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 100 == 99 or step + 1 == steps:
            mse = functional.mse_loss(decoded, pixels).item() / 4
            bar.set_postfix(psnr=f"{-10 * np.log10(mse):.2f}")
            save_state(
                path,
                {"model": vae.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1},
            )
    vae.eval()


@torch.no_grad()
def encode_pool(
    vae: AutoencoderKL | AutoencoderKLWan,
    work: Path,
    part: int,
    *,
    count: int,
    num_frames: int,
    device: torch.device,
) -> dict:
    """Render and encode one part of the pool; kept on disk, made once.

    Returns:
        `latents` (count, channels, frames, height, width) in bfloat16, unscaled, and `captions`.
    """
    path = work / f"pool-{part:04d}.pt"
    stored = load_state(path)
    if stored is not None:
        return stored
    frames, captions = draw_clips(count, part, SIZES[part % len(SIZES)], num_frames)
    latents = []
    for clip in frames:
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type != "cpu"):
            latents.append(encode(vae, to_pixels(clip[None], device)).mode())
    stored = {"latents": torch.cat(latents).contiguous().bfloat16().cpu(), "captions": captions}
    save_state(path, stored)
    return stored
