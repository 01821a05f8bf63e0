"""The model's predictions as they were profiled, on average over prompts."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from foresight.policies.multistep import coordinates
from foresight.policies.reaction import Reaction
from foresight.policies.trajectory import resampled
from foresight.solver import Solver


class ProfiledPath(nn.Module):
    """Predictions along one schedule of S steps, at one guidance scale.

    Attributes:
        sigmas: (S,) noise levels, falling.
        gram: (S, S) inner products of the predictions.
        response, decay: See `Solver`.
        guidance_scale: A number.
    """

    sigmas: Tensor
    gram: Tensor
    response: Tensor
    decay: Tensor
    guidance_scale: Tensor

    def __init__(self, steps: int) -> None:
        super().__init__()
        for name, shape in {
            "sigmas": (steps,),
            "gram": (steps, steps),
            "response": (steps, steps),
            "decay": (steps,),
            "guidance_scale": (),
        }.items():
            self.register_buffer(name, torch.zeros(shape, dtype=torch.float64))

    def fit(
        self, sigmas: np.ndarray, gram: np.ndarray, solver: Solver, guidance_scale: float
    ) -> None:
        """Take what was profiled; shapes as above."""
        self.sigmas.copy_(torch.as_tensor(sigmas))
        self.gram.copy_(torch.as_tensor(gram))
        self.response.copy_(torch.from_numpy(solver.response))
        self.decay.copy_(torch.from_numpy(solver.decay))
        self.guidance_scale.fill_(guidance_scale)

    def at(self, sigmas: np.ndarray, solver: Solver, reaction: Reaction) -> np.ndarray:
        """Inner products (S', S') to be expected along another schedule, see `resampled`."""
        own = Solver(self.response.numpy(), self.decay.numpy())
        path = resampled(self.gram.numpy(), self.sigmas.numpy(), own, sigmas, solver, reaction)
        return path @ path.T


class MeanPaths(nn.ModuleList):
    """What to expect of any schedule and guidance scale, from those that were profiled.

    Args:
        steps: Of each schedule that was profiled.
    """

    def __init__(self, steps: Sequence[int]) -> None:
        super().__init__(map(ProfiledPath, steps))

    def at(
        self, sigmas: np.ndarray, solver: Solver, guidance_scale: float, reaction: Reaction
    ) -> np.ndarray:
        """Predictions to be expected, (S, R) coordinates.

        From the schedule with as many steps, or the one with most; of guidance scales, linear
        between the next lower and the next higher one.

        Args:
            sigmas: (S,).
            solver: Of the generation.
            guidance_scale: Of the generation.
            reaction: At `sigmas`.
        """
        scales = sorted({path.guidance_scale.item() for path in self._profiled})
        lower = max([scale for scale in scales if scale <= guidance_scale], default=scales[0])
        upper = min([scale for scale in scales if scale >= guidance_scale], default=scales[-1])
        share = (guidance_scale - lower) / (upper - lower) if lower < upper else 0.0
        gram = np.zeros((len(sigmas), len(sigmas)))
        for scale, weight in ((lower, 1 - share), (upper, share)):
            if weight > 0:
                gram += weight * self._of(scale, len(sigmas)).at(sigmas, solver, reaction)
        return coordinates(gram)

    def _of(self, guidance_scale: float, steps: int) -> ProfiledPath:
        there = [path for path in self._profiled if path.guidance_scale.item() == guidance_scale]
        return max(there, key=lambda path: (len(path.sigmas) == steps, len(path.sigmas)))

    @property
    def _profiled(self) -> list[ProfiledPath]:
        return [path for path in self if isinstance(path, ProfiledPath)]
