"""Fitting how the model answers latents that are off, to what roll-outs measured step by step."""

import numpy as np
import torch

from foresight.policies.multistep import TINY, carry_out, coordinates
from foresight.policies.reaction import (
    GAIN_DEGREE,
    SHARE_DEGREE,
    ReactionModel,
    noise_level,
    powers,
)
from policy_training.generations import Bucket
from policy_training.rollouts import Rollouts

PRIOR = 1e-2  # keeps coefficients near 0 where there is little to fit them to
PERSISTENCES = np.linspace(0, 0.95, 20)
NOTHING = 1e-9  # energy of an error that is rounding


def fit_reaction(model: ReactionModel, buckets: list[Bucket], rollouts: list[Rollouts]) -> None:
    """Fit in place, by least squares over all steps of all roll-outs; as it is if there are none.

    The gain on a log scale; then the share of the gain that is coherent; then how much of the rest
    persists from step to step, so that the errors at the end come out right, predictions known.

    Args:
        model: To fit.
        buckets: Generations with their roll-outs.
        rollouts: Those of plans at the output.
    """
    sigmas, measured = gather_reactions(buckets)
    if not len(sigmas):
        return
    given, inner, answer = measured.T
    level = noise_level(sigmas)
    gain = _polynomial(level, np.log(answer / given) / 2, GAIN_DEGREE)
    usual = np.exp(powers(level, GAIN_DEGREE) @ gain)
    share = _polynomial(level, (inner / given / usual).clip(-1, 1), SHARE_DEGREE)
    model.gain.copy_(torch.from_numpy(gain))
    model.share.copy_(torch.from_numpy(share))
    model.known.copy_(torch.tensor([level.min(), level.max()]))
    misses = [_miss(model, rollouts, each) for each in PERSISTENCES] if rollouts else [0.0]
    model.persistence.fill_(PERSISTENCES[int(np.argmin(misses))])


def gather_reactions(buckets: list[Bucket]) -> tuple[np.ndarray, np.ndarray]:
    """Noise levels (P,) and measurements (P, 3) of steps where latents were off, see `roll_out`."""
    sigmas, found = [np.zeros(0)], [np.zeros((0, 3))]
    for bucket in buckets:
        for levels, rollouts in zip(bucket.sigmas.numpy(), bucket.rollouts, strict=True):
            for rollout in rollouts:
                measured = np.asarray(rollout["reaction"], float)
                told = (measured[:, 0] > NOTHING) & (measured[:, 2] > NOTHING)
                sigmas.append(levels[told])
                found.append(measured[told])
    return np.concatenate(sigmas), np.concatenate(found)


def _miss(model: ReactionModel, rollouts: list[Rollouts], persistence: float) -> float:
    """Mean squared log ratio of predicted to measured error at the end."""
    model.persistence.fill_(persistence)
    ratios = []
    for group in rollouts:
        reaction = model.at(group.sigmas.numpy())
        for which, gram in enumerate(group.grams):
            plan = group.computed[which][None], group.weights[which][None]
            energy = carry_out(coordinates(gram), group.solver, reaction, *plan)[1]
            ratios.append(np.log(max(energy[0], TINY)) - float(group.log_final_error[which]))
    return float(np.square(ratios).mean())


def _polynomial(level: np.ndarray, values: np.ndarray, degree: int) -> np.ndarray:
    """Coefficients (degree + 1,) of a ridge regression of values (P,) on levels (P,)."""
    design = powers(level, degree)
    ridge = PRIOR * np.eye(degree + 1)
    return np.linalg.solve(design.T @ design + ridge, design.T @ values)
