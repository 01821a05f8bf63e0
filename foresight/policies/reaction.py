"""How a model answers latents that are off: the learned part of what skipping costs.

Where latents are off by e, the prediction is off by `coherent * e`, and by something at right
angles to e, whose size is `spread * |e|` and `fresh * |e|` together. The first of these comes from
directions in which the model reacts more than on average, and others in which it reacts less, the
same ones for as long as the error lasts, so that errors heal in some directions and grow in others.
The second is new at each step. All depend on the noise level: at high noise a small error changes
what the video becomes, later on it hardly matters. With the solver's response this tells what is
left of an error at the end, and how far later predictions can be trusted.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from foresight.clock import log_snr
from foresight.solver import Solver

GAIN_DEGREE, SHARE_DEGREE = 3, 2  # of the curves over the noise level
MOST_COHERENT = 0.98


class Reaction(NamedTuple):
    """A model's reaction at each of S steps."""

    coherent: np.ndarray
    """(S,)"""
    spread: np.ndarray
    """(S,) by which the reaction is larger in half of all directions, and smaller in the others."""
    fresh: np.ndarray
    """(S,), not negative."""

    def embedded(self, path: np.ndarray) -> np.ndarray:
        """Predictions (S, R) in the coordinates of `answer`, (S, 2 * R + S).

        Their own stand twice, for both halves of all directions; then one for each step's fresh
        error.
        """
        return np.pad(np.tile(path, 2) / np.sqrt(2), ((0, 0), (0, len(path))))

    def answer(self, step: int, error: np.ndarray) -> np.ndarray:
        """What a prediction is off by where latents are off by an error (..., 2 * R + S)."""
        rank = (error.shape[-1] - len(self.fresh)) // 2
        off = self.coherent[step] * error
        off[..., :rank] += self.spread[step] * error[..., :rank]
        off[..., rank : 2 * rank] -= self.spread[step] * error[..., rank : 2 * rank]
        off[..., 2 * rank + step] += self.fresh[step] * np.linalg.norm(error, axis=-1)
        return off


class ReactionModel(nn.Module):
    """Two polynomials over the noise level, fitted to roll-outs (`policy_training.reaction`).

    Attributes:
        gain: Coefficients of log |prediction's error| / |latents' error|; zeros if never fitted, so
            that predictions are off by as much as latents.
        share: Coefficients of the cosine between the two errors.
        known: The lowest and the highest noise level that was seen; beyond, curves stay level.
        persistence: Share, as an amplitude, of what is at right angles that persists.
    """

    gain: Tensor
    share: Tensor
    known: Tensor
    persistence: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("gain", torch.zeros(GAIN_DEGREE + 1, dtype=torch.float64))
        self.register_buffer("share", torch.zeros(SHARE_DEGREE + 1, dtype=torch.float64))
        self.register_buffer("known", torch.zeros(2, dtype=torch.float64))
        self.register_buffer("persistence", torch.zeros((), dtype=torch.float64))

    def at(self, sigmas: np.ndarray) -> Reaction:
        """The reaction at noise levels (S,)."""
        level = noise_level(sigmas).clip(*self.known.tolist())
        gain = np.exp(powers(level, GAIN_DEGREE) @ self.gain.numpy())
        share = powers(level, SHARE_DEGREE) @ self.share.numpy()
        share = share.clip(-MOST_COHERENT, MOST_COHERENT)
        across, kept = gain * np.sqrt(1 - share**2), self.persistence.item()
        return Reaction(gain * share, across * kept, across * np.sqrt(1 - kept**2))


def noise_level(sigmas: np.ndarray) -> np.ndarray:
    """A quarter of the log signal-to-noise ratio of sigmas (S,), kept off 0 and 1."""
    return log_snr(np.clip(np.asarray(sigmas, float), 0.01, 0.99)) / 4


def powers(level: np.ndarray, degree: int) -> np.ndarray:
    """(S, degree + 1)."""
    return level[:, None] ** np.arange(degree + 1)


def gains_after(solver: Solver, reaction: Reaction) -> np.ndarray:
    """Energy in the final latents of a unit in those before each step, (S + 1,).

    All steps from there on are computed; fresh errors are left out.
    """
    steps = len(solver.decay)
    carried = np.append(1.0, solver.decay if solver.decay.all() else np.ones(steps))
    begun = np.tri(steps + 1).T  # row t: latents off by 1 before step t
    energy = np.zeros(steps + 1)
    for turned in (reaction.coherent + reaction.spread, reaction.coherent - reaction.spread):
        off = np.zeros((steps + 1, steps))  # of predictions
        error = begun[:, 0]
        for step in range(steps):
            off[:, step] = turned[step] * error
            kept = begun[:, step + 1] * carried[step + 1] / carried
            error = kept + off[:, : step + 1] @ solver.response[: step + 1, step]
        energy += error**2 / 2
    return energy
