"""Fitting the dynamics, a dozen numbers, to the measured damage of roll-outs."""

import torch
from torch import Tensor
from torch.nn.functional import huber_loss

from foresight.policies.dynamics import ErrorDynamics, run_energies
from policy_training.rollouts import Rollouts

ITERATIONS = 100
PULL = 1e-3


def log_damage(dynamics: ErrorDynamics, rollouts: Rollouts, gram: Tensor) -> Tensor:
    """Predicted log error of the final latents (R,).

    Args:
        dynamics: How errors reach the video.
        rollouts: Their plans.
        gram: (R, S, S) inner products of the output.
    """
    told = dynamics(rollouts.sigmas, rollouts.response)
    energies, _ = run_energies(rollouts.runs, gram, told, rollouts.corrections)
    return dynamics.log_damage(energies, rollouts.runs.which, len(gram))


def damage_loss(dynamics: ErrorDynamics, groups: list[Rollouts]) -> Tensor:
    """Huber loss of the log ratio of predicted to measured error, outputs known."""
    off = [log_damage(dynamics, group, group.gram) - group.log_final_error for group in groups]
    ratios = torch.cat(off)
    return huber_loss(ratios, torch.zeros_like(ratios))


def fit_dynamics(dynamics: ErrorDynamics, groups: list[Rollouts]) -> None:
    """Fit in place, by L-BFGS over all roll-outs at once; nothing here depends on chance.

    A weak pull to where it started keeps what the roll-outs do not tell from running off.
    """
    start = [parameter.detach().clone() for parameter in dynamics.parameters()]
    optimizer = torch.optim.LBFGS(
        dynamics.parameters(),
        max_iter=ITERATIONS,
        tolerance_change=1e-7,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        pairs = zip(dynamics.parameters(), start, strict=True)
        moved = torch.stack([(now - then).square().sum() for now, then in pairs]).sum()
        total = damage_loss(dynamics, groups) + PULL * moved
        total.backward()
        return total

    optimizer.step(loss)
