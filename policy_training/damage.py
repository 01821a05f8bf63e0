"""Fitting the damage model, four numbers, to the measured errors of roll-outs."""

import torch
from torch import Tensor
from torch.nn.functional import huber_loss, pad

from foresight.policies.damage import DamageModel
from policy_training.rollouts import Rollouts, Runs

ITERATIONS = 100
PULL = 1e-3


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

    A weak pull to where it started keeps what the roll-outs do not tell from running off.
    """
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
        total = damage_loss(damage, groups) + PULL * moved
        total.backward()
        return total

    optimizer.step(loss)
