"""Clips to latents and back, alike for a VAE of frames and a causal VAE of clips."""

import torch
from diffusers import AutoencoderKL, AutoencoderKLWan
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution


def encode(
    vae: AutoencoderKL | AutoencoderKLWan, pixels: torch.Tensor
) -> DiagonalGaussianDistribution:
    """Posterior over latents (n, C, f, h, w) of pixels (n, 3, frames, height, width)."""
    if isinstance(vae, AutoencoderKLWan):
        return vae.encode(pixels).latent_dist
    moments = vae.encode(_as_images(pixels)).latent_dist.parameters
    return DiagonalGaussianDistribution(_as_clips(moments, len(pixels)))


def decode(vae: AutoencoderKL | AutoencoderKLWan, latents: torch.Tensor) -> torch.Tensor:
    """Pixels (n, 3, frames, height, width) of latents (n, C, f, h, w)."""
    if isinstance(vae, AutoencoderKLWan):
        return vae.decode(latents).sample
    return _as_clips(vae.decode(_as_images(latents)).sample, len(latents))


def fit_scale(vae: AutoencoderKL | AutoencoderKLWan, samples: list[torch.Tensor]) -> None:
    """Write into the VAE's config what brings its latents (n, C, f, h, w) to unit variance."""
    values = torch.cat([s.float().transpose(0, 1).flatten(1) for s in samples], dim=1)
    if isinstance(vae, AutoencoderKLWan):
        vae.register_to_config(
            latents_mean=[round(mean, 4) for mean in values.mean(dim=1).tolist()],
            latents_std=[round(deviation, 4) for deviation in values.std(dim=1).tolist()],
        )
    else:
        vae.register_to_config(scaling_factor=round(1 / values.std().item(), 4))


def scale_latents(vae: AutoencoderKL | AutoencoderKLWan, latents: torch.Tensor) -> torch.Tensor:
    """Latents (n, C, f, h, w) as the denoiser sees them; the pipelines undo it."""
    if isinstance(vae, AutoencoderKLWan):
        shape = (1, -1, 1, 1, 1)
        mean = torch.tensor(vae.config.latents_mean, device=latents.device).view(shape)
        deviation = torch.tensor(vae.config.latents_std, device=latents.device).view(shape)
        return (latents - mean) / deviation
    return latents * vae.config.scaling_factor


def _as_images(clips: torch.Tensor) -> torch.Tensor:
    images = clips.transpose(1, 2).flatten(0, 1)
    return images.contiguous(memory_format=torch.channels_last)


def _as_clips(images: torch.Tensor, count: int) -> torch.Tensor:
    return images.unflatten(0, (count, -1)).transpose(1, 2)
