"""From what runs of skipped steps leave in the latents to the error of the video."""

import numpy as np
import torch
from torch import Tensor, nn

DEGREE = 2  # of the curve over the noise level


class DamageModel(nn.Module):
    """The learned part: how latents that are off grow or heal, and how several runs add up.

    An error of the latents is corrected by a model that looks at them again, or turns the video
    into another; which, depends on the noise level at which it arises.
    """

    def __init__(self) -> None:
        super().__init__()
        self.curve = nn.Parameter(torch.zeros(DEGREE + 1))
        self.log_power = nn.Parameter(torch.zeros(()))

    @property
    def power(self) -> Tensor:
        """The p-norm over runs: 0.5 adds amplitudes, 1 adds energies, more leans to the worst."""
        return 0.5 + 1.5 * torch.sigmoid(self.log_power - 0.7)

    def log_gain(self, sigmas: Tensor) -> Tensor:
        """Log energy in the final latents of a unit in those at noise levels (any shape)."""
        level = log_ratio(sigmas.double().clamp(0.01, 0.99)) / 2
        return level[..., None] ** torch.arange(DEGREE + 1) @ self.curve.double()

    def log_damage(self, log_energies: Tensor, which: Tensor, count: int) -> Tensor:
        """Log error of the final latents (count,) from what their runs leave there, (B,) logs."""
        summed = torch.zeros(count, dtype=log_energies.dtype)
        summed = summed.index_add(0, which, (self.power * log_energies).exp())
        return summed.clamp(min=1e-30).log() / self.power


def gains_after(damage: DamageModel, sigmas: np.ndarray) -> np.ndarray:
    """Gain (S + 1,) of what is left before each step (S,) and at the end."""
    levels = torch.from_numpy(np.append(sigmas, 0.0))
    with torch.no_grad():
        return damage.log_gain(levels).exp().numpy()


def log_ratio(sigmas: Tensor) -> Tensor:
    """Log of signal over noise, with sigmas kept off 0 and 1."""
    inside = sigmas.clamp(1e-4, 1 - 1e-4)
    return ((1 - inside) / inside).log()
