"""First stage of the recipe: the VAE on single frames, then clips as latents."""

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch.nn import functional
from tqdm.auto import tqdm

from foresight.models import clips
from foresight.models.architecture import NUM_FRAMES

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


def draw_clips(count: int, seed: int, size: tuple[int, int]) -> tuple[np.ndarray, list[str]]:
    """`count` rendered clips (count, frames, height, width, 3) in uint8, and their captions."""
    rng = np.random.default_rng(seed)
    scenes = [clips.sample_scene(rng) for _ in range(count)]
    frames = [
        clips.render(s, rng, num_frames=NUM_FRAMES, height=size[0], width=size[1]) for s in scenes
    ]
    return np.stack(frames), [clips.caption(s) for s in scenes]


def to_pixels(frames: np.ndarray, device: torch.device) -> torch.Tensor:
    """uint8 (n, height, width, 3) to float (n, 3, height, width) in [-1, 1]."""
    return torch.from_numpy(frames).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1


def train_vae(
    vae: AutoencoderKL, work: Path, *, steps: int, batch_size: int, device: torch.device
) -> None:
    """Train the VAE on single frames: L1, an edge term for sharpness, a very light KL."""
    path = work / "vae.pt"
    optimizer = torch.optim.AdamW(vae.parameters(), lr=0, weight_decay=0.01)
    state = load_state(path)
    start = 0
    if state is not None:
        vae.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        start = state["step"]
    vae.to(device, memory_format=torch.channels_last).train()
    bar = tqdm(range(start, steps), initial=start, total=steps, desc="VAE")
    for step in bar:
        if step == start or step % 16 == 0:
            drawn = draw_clips(32, seed=10_000_000 + step, size=(64, 64))[0].reshape(-1, 64, 64, 3)
        picks = np.random.default_rng(step).permutation(len(drawn))[:batch_size]
        pixels = to_pixels(drawn[picks], device).to(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16):
            posterior = vae.encode(pixels).latent_dist
            mean = posterior.mode()
            decoded = vae.decode(mean + 0.03 * torch.randn_like(mean)).sample.float()
        loss = functional.l1_loss(decoded, pixels) + 0.5 * functional.mse_loss(decoded, pixels)
        for dim in (2, 3):
            loss = loss + 0.5 * functional.l1_loss(decoded.diff(dim=dim), pixels.diff(dim=dim))
        (loss + 1e-7 * posterior.kl().mean()).backward()  # any more empties channels
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, 1.5e-3)
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
    vae: AutoencoderKL, work: Path, part: int, *, count: int, device: torch.device
) -> dict:
    """Render and encode one part of the pool; kept on disk, made once.

    Returns:
        `latents` (count, channels, frames, height, width) in bfloat16, unscaled, and `captions`.
    """
    path = work / f"pool-{part:04d}.pt"
    stored = load_state(path)
    if stored is not None:
        return stored
    frames, captions = draw_clips(count, seed=part, size=SIZES[part % len(SIZES)])
    latents = []
    for clip in frames:
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type != "cpu"):
            latents.append(vae.encode(to_pixels(clip, device)).latent_dist.mode())
    stored = {
        "latents": torch.stack(latents).transpose(1, 2).contiguous().bfloat16().cpu(),
        "captions": captions,
    }
    save_state(path, stored)
    return stored
