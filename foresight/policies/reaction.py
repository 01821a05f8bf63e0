"""How a model answers latents that are off: the learned part of what skipping costs.

Where latents are off by e, the prediction is off by `coherent * e`, and by something at right
angles to e of size `spread * |e|`. The latter comes from directions in which the model reacts more
than on average, and others in which it reacts less: errors heal in some directions and grow in
others. Part of that lasts in its directions for as long as the error does, the rest has new ones at
every step. All of it depends on the noise level and on guidance: at high noise a small error
changes what the video becomes, later on it hardly matters. With the solver's response this tells
what is left of an error at the end, and how far later predictions can be trusted.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from foresight.clock import log_snr
from foresight.solver import Solver

CURVES = {"gain": 6, "share": 4, "lasting": 3}  # how many terms each has
LOG_GAINS = (-5.0, 5.0)
MOST_COHERENT = 0.98


class Reaction(NamedTuple):
    """A model's reaction at each of S steps."""

    coherent: np.ndarray
    """(S,)"""
    spread: np.ndarray
    """(S,) by which the reaction is larger in half of all directions, and smaller in the others."""
    lasting: np.ndarray | None = None
    """(S,) how much of the spread, as an amplitude, keeps its directions; all of it if None."""

    def cautious(self) -> "Reaction":
        """The same if all of the spread lasted.

        What plans are made for: the errors that last are those that turn a video into another one,
        in some generations and not in others, and nobody knows beforehand in which.
        """
        return self._replace(lasting=None)

    def embedded(self, path: np.ndarray) -> np.ndarray:
        """Predictions (S, R) in the coordinates of `answer`, (S, D).

        Once for each half of all directions; and a coordinate for what is new at each step, if
        anything ever is.
        """
        new = path[:, :0] if self.lasting is None else np.zeros((len(path), len(path)))
        return np.concatenate([path, path, new], axis=1) / np.sqrt(2)

    def answer(self, step: int, error: np.ndarray) -> np.ndarray:
        """What a prediction is off by where latents are off by an error (..., D)."""
        coherent, spread = self.coherent[step], self.spread[step]
        new = 0 if self.lasting is None else len(self.lasting)
        rank = (error.shape[-1] - new) // 2
        lasts = 1.0 if self.lasting is None else self.lasting[step]
        answer = coherent * error
        answer[..., :rank] += spread * lasts * error[..., :rank]
        answer[..., rank : 2 * rank] -= spread * lasts * error[..., rank : 2 * rank]
        if new:
            fresh = spread * np.sqrt(1 - lasts**2)
            answer[..., 2 * rank + step] += fresh * np.linalg.norm(error, axis=-1)
        return answer


class ReactionModel(nn.Module):
    """Curves over the noise level and the guidance scale, fitted to roll-outs.

    See `policy_training.reaction`. Guidance enlarges the difference that the prompt makes, and with
    it the answer to an error.

    Attributes:
        gain: Coefficients of log |prediction's error| / |latents' error|; zeros if never fitted, so
            that predictions are off by as much as latents.
        share: Coefficients of the cosine between the two errors, through a hyperbolic tangent.
        lasting: Coefficients of `Reaction.lasting`, through a sigmoid.
        known: The lowest and the highest noise level that was seen, and log guidance scale; beyond,
            curves stay level.
    """

    gain: Tensor
    share: Tensor
    lasting: Tensor
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


def curves(coefficients: dict[str, Tensor], terms: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The parts of a `Reaction`, (S,) each, from terms (S, 6)."""
    gain, share, lasting = (
        terms[:, : len(coefficients[name])] @ coefficients[name] for name in CURVES
    )
    gain, share = gain.clamp(*LOG_GAINS).exp(), MOST_COHERENT * share.tanh()
    return gain * share, gain * (1 - share**2).sqrt(), lasting.sigmoid()


def log_guidance(scale: float) -> float:
    """Of no guidance: 0."""
    return math.log(max(scale, 1.0))


def noise_level(sigmas: np.ndarray) -> np.ndarray:
    """A quarter of the log signal-to-noise ratio of sigmas (S,), kept off 0 and 1."""
    return log_snr(np.clip(np.asarray(sigmas, float), 0.01, 0.99)) / 4


def gains_after(solver: Solver, reaction: Reaction) -> np.ndarray:
    """Energy in the final latents of a unit in those before each step, (S + 1,).

    All steps from there on are computed, and all of the spread lasts.
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
