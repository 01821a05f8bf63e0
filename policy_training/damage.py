"""Fitting the damage model, four numbers, to the measured errors of roll-outs."""

import torch
from torch import Tensor
from torch.nn.functional import huber_loss, pad

from foresight.policies.damage import DamageModel
from policy_training.rollouts import Rollouts, Runs

ITERATIONS = 100
PRIOR = 1.0  # standard deviation of every parameter about its start, in units of a usual miss


def log_damage(damage: DamageModel, rollouts: Rollouts, runs: Runs) -> Tensor:
    """Predicted log error of the final latents (R,), from what their runs leave."""
    gains = damage.log_gain(pad(rollouts.sigmas, (0, 1)))[runs.following]
    return damage.log_damage(gains + runs.log_energy, runs.which, len(rollouts.computed))


def damage_loss(damage: DamageModel, groups: list[Rollouts]) -> Tensor:
    """Huber loss of the log ratio of predicted to measured error, outputs known."""
    off = [log_damage(damage, group, group.runs) - group.log_final_error for group in groups]
    ratios = torch.cat(off)
    return huber_loss(ratios, torch.zeros_like(ratios))


def fit_damage(damage: DamageModel, groups: list[Rollouts]) -> None:
    """Fit in place, by L-BFGS over all roll-outs at once; nothing here depends on chance.

    What the roll-outs do not tell stays where it started: errors neither heal nor grow, and their
    energies add up. The fewer roll-outs, the more so: the fit is that of greatest probability under
    a normal prior.
    """
    count = sum(len(group.computed) for group in groups)
    start = [parameter.detach().clone() for parameter in damage.parameters()]
    optimizer = torch.optim.LBFGS(
        damage.parameters(),
        max_iter=ITERATIONS,
        tolerance_change=1e-7,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        pairs = zip(damage.parameters(), start, strict=True)
        moved = torch.stack([(now - then).square().sum() for now, then in pairs]).sum()
        total = damage_loss(damage, groups) + moved / (2 * PRIOR**2 * count)
        total.backward()
        return total

    optimizer.step(loss)
