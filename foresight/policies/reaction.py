"""How a model answers latents that are off: the learned part of what skipping costs.

Where latents are off by e, the prediction is off by `coherent * e`, and by something at right
angles to e of size `spread * |e|`. The latter comes from directions in which the model reacts more
than on average, and others in which it reacts less, the same ones for as long as the error lasts:
errors heal in some directions and grow in others. Both depend on the noise level and on guidance:
at high noise a small error changes what the video becomes, later on it hardly matters. With the
solver's response this tells what is left of an error at the end, and how far later predictions can
be trusted.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from foresight.clock import log_snr
from foresight.solver import Solver

CURVES = {"gain": 6, "share": 4}  # how many terms each has
LOG_GAINS = (-5.0, 5.0)
MOST_COHERENT = 0.98


class Reaction(NamedTuple):
    """A model's reaction at each of S steps."""

    coherent: np.ndarray
    """(S,)"""
    spread: np.ndarray
    """(S,) by which the reaction is larger in half of all directions, and smaller in the others."""

    def embedded(self, path: np.ndarray) -> np.ndarray:
        """Predictions (S, R) in the coordinates of `answer`, (S, 2 * R): once for each half."""
        return np.tile(path, 2) / np.sqrt(2)

    def answer(self, step: int, error: np.ndarray) -> np.ndarray:
        """What a prediction is off by where latents are off by an error (..., 2 * R)."""
        rank = error.shape[-1] // 2
        more, less = (self.coherent[step] + sign * self.spread[step] for sign in (1, -1))
        return np.concatenate([more * error[..., :rank], less * error[..., rank:]], axis=-1)


class ReactionModel(nn.Module):
    """Curves over the noise level and the guidance scale, fitted to roll-outs.

    See `policy_training.reaction`. Guidance enlarges the difference that the prompt makes, and with
    it the answer to an error.

    Attributes:
        gain: Coefficients of log |prediction's error| / |latents' error|; zeros if never fitted, so
            that predictions are off by as much as latents.
        share: Coefficients of the cosine between the two errors, through a hyperbolic tangent.
        known: The lowest and the highest noise level that was seen, and log guidance scale; beyond,
            curves stay level.
    """

    gain: Tensor
    share: Tensor
    known: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name, count in CURVES.items():
            self.register_buffer(name, torch.zeros(count, dtype=torch.float64))
        self.register_buffer("known", torch.zeros(2, 2, dtype=torch.float64))

    def at(self, sigmas: np.ndarray, guidance_scale: float) -> Reaction:
        """The reaction at noise levels (S,)."""
        known = {name: getattr(self, name) for name in CURVES}
        return Reaction(
            *(each.numpy() for each in curves(known, self.terms(sigmas, guidance_scale)))
        )

    def terms(self, sigmas: np.ndarray, guidance_scale: float) -> Tensor:
        """What curves are sums of, (S, 6): a constant first, then what matters less and less."""
        (lowest, highest), (weakest, strongest) = self.known.tolist()
        level = torch.from_numpy(noise_level(sigmas).clip(lowest, highest))
        guided = min(max(log_guidance(guidance_scale), weakest), strongest)
        guided = (guided - (weakest + strongest) / 2) * torch.ones_like(level)
        one = torch.ones_like(level)
        return torch.stack([one, level, guided, level**2, level * guided, level**3], dim=1)


def curves(coefficients: dict[str, Tensor], terms: Tensor) -> tuple[Tensor, Tensor]:
    """Coherent reaction and spread, (S,) each, from terms (S, 6)."""
    gain, share = (terms[:, : len(coefficients[name])] @ coefficients[name] for name in CURVES)
    gain, share = gain.clamp(*LOG_GAINS).exp(), MOST_COHERENT * share.tanh()
    return gain * share, gain * (1 - share**2).sqrt()


def log_guidance(scale: float) -> float:
    """Of no guidance: 0."""
    return math.log(max(scale, 1.0))


def noise_level(sigmas: np.ndarray) -> np.ndarray:
    """A quarter of the log signal-to-noise ratio of sigmas (S,), kept off 0 and 1."""
    return log_snr(np.clip(np.asarray(sigmas, float), 0.01, 0.99)) / 4


def gains_after(solver: Solver, reaction: Reaction) -> np.ndarray:
    """Energy in the final latents of a unit in those before each step, (S + 1,).

    All steps from there on are computed.
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
