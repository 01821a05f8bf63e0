"""Generating some frames while others are given."""

import torch

from foresight.models.opensora.scheduler import OpenSoraFlowScheduler


class FrameMask:
    """Keeps given frames as they are, or edits them from a lower noise level on.

    A frame takes part from the first timestep that is not above its share of all noise. Until then
    it is clean and conditions the others; when it enters, it is noised to the level of that
    step. Frames with share 1 start as noise.

    Args:
        shares: (B, T) in 0..1; 0 keeps a frame, 1 generates it.
        scheduler: The noise scheduler of the generation.
    """

    def __init__(self, shares: torch.Tensor, scheduler: OpenSoraFlowScheduler) -> None:
        self._scheduler = scheduler
        self._limits = shares * scheduler.config.num_train_timesteps
        self._entered = shares >= 1

    def active(self, timestep: torch.Tensor) -> torch.Tensor:
        """Frames (B, T) that are denoised at a timestep."""
        return self._limits >= timestep

    def enter(
        self, latents: torch.Tensor, noise: torch.Tensor, timestep: torch.Tensor
    ) -> torch.Tensor:
        """Latents (B, C, T, H, W) with the frames noised that enter at this timestep."""
        active = self.active(timestep)
        entering = active & ~self._entered
        self._entered = active
        noisy = self._scheduler.add_noise(latents, noise, timestep)
        return torch.where(_over_frames(entering), noisy, latents)

    def keep(
        self, denoised: torch.Tensor, latents: torch.Tensor, timestep: torch.Tensor
    ) -> torch.Tensor:
        """The step's result with all frames that did not take part as they were before."""
        return torch.where(_over_frames(self.active(timestep)), denoised, latents)


def _over_frames(mask: torch.Tensor) -> torch.Tensor:
    return mask[:, None, :, None, None]
