"""Fitting how the model answers latents that are off, to what roll-outs measured step by step."""

import math

import numpy as np
import torch
from torch import Tensor

from foresight.plan import HISTORY
from foresight.policies.multistep import coordinates
from foresight.policies.reaction import CURVES, ReactionModel, curves, log_guidance, noise_level
from policy_training.rollouts import Rollouts

PRIOR = 1e-3  # keeps coefficients near 0 where there is little to fit them to
NOTHING = 1e-9  # energy of an error that is rounding
LINEAR = 1e-3  # beyond it the video has become another one, and errors no longer grow
ITERATIONS = 60
TINY = 1e-13


def fit_reaction(rollouts: list[Rollouts]) -> ReactionModel:
    """The reaction that whole roll-outs show; a fresh one if there are none.

    Given a plan and the uncached predictions, the model's curves say how far latents and
    predictions are off at every step. That is compared with what was measured, on a log scale, and
    the difference made small by L-BFGS: an error that has lasted lies in other directions than a
    new one, so what a step answers cannot be fitted step by step.

    Args:
        rollouts: Of plans at the output, in which something was skipped.
    """
    model = ReactionModel()
    groups = [group for group in rollouts if _measured(group).any()]
    if not groups:
        return model
    levels = np.concatenate([noise_level(group.sigmas.numpy()) for group in groups])
    guided = [log_guidance(group.guidance_scale) for group in groups]
    ends = [[levels.min(), levels.max()], [min(guided), max(guided)]]
    model.known.copy_(torch.tensor(ends, dtype=torch.float64))
    runs = sum(len(group.grams) for group in groups)
    known = [
        (
            group,
            _paths(group),
            _measured(group),
            model.terms(group.sigmas.numpy(), group.guidance_scale),
        )
        for group in groups
    ]
    found = {
        name: torch.zeros(count, dtype=torch.float64, requires_grad=True)
        for name, count in CURVES.items()
    }
    solver = torch.optim.LBFGS(
        list(found.values()), max_iter=ITERATIONS, history_size=20, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        solver.zero_grad()
        total = torch.stack([each.square().sum() for each in found.values()]).sum() * PRIOR
        for group, path, there, terms in known:
            told = replay(group, path, curves(found, terms))
            total = total + len(path) / runs * _miss(group, there, told)
        total.backward()
        return total

    solver.step(closure)
    for name in CURVES:
        getattr(model, name).copy_(found[name].detach())
    return model


def replay(rollouts: Rollouts, path: Tensor, reaction: tuple[Tensor, ...]) -> Tensor:
    """What the model's curves say of roll-outs, as was measured: (R, S, 3).

    As `carry_out` does it, with the weights of the plans; differentiable.

    Args:
        rollouts: R of them.
        path: (R, S, D) uncached predictions.
        reaction: The parts of a `Reaction`, (S,) each.
    """
    coherent, spread, lasting = reaction
    runs, steps, width = path.shape
    true = torch.cat([path, path, path.new_zeros(runs, steps, steps)], dim=2) / math.sqrt(2)
    halves = path.new_tensor([1.0] * width + [-1.0] * width + [0.0] * steps)
    own = torch.cat([path.new_zeros(steps, 2 * width), torch.eye(steps).to(path)], dim=1)
    kept, fresh = spread * lasting, spread * (1 - lasting**2).clamp(min=0).sqrt()
    computed, weights = torch.from_numpy(rollouts.computed), torch.from_numpy(rollouts.weights)
    response = torch.from_numpy(rollouts.solver.response)
    error = path.new_zeros(runs, true.shape[2])
    held, off, told = [error] * HISTORY, [], []
    for step in range(steps):
        size = (error.square().sum(dim=1, keepdim=True) + TINY).sqrt()
        answer = (coherent[step] + kept[step] * halves) * error
        answer = answer + fresh[step] * size * own[step]
        told.append([(error * error).sum(1), (error * answer).sum(1), (answer * answer).sum(1)])
        latest = [true[:, step] + answer, *held[:-1]]
        now = computed[:, step, None]
        held = [torch.where(now, new, old) for new, old in zip(latest, held, strict=True)]
        parts = zip(weights[:, step].T, held, strict=True)
        off.append(sum(weight[:, None] * each for weight, each in parts) - true[:, step])
        error = torch.einsum("s,srd->rd", response[: step + 1, step], torch.stack(off))
    return torch.stack([torch.stack(each, dim=1) for each in told], dim=1)


def _paths(rollouts: Rollouts) -> Tensor:
    """Coordinates of the uncached predictions, (R, S, D)."""
    paths = [torch.from_numpy(coordinates(gram)) for gram in rollouts.grams]
    width = max(path.shape[1] for path in paths)
    return torch.stack(
        [torch.nn.functional.pad(path, (0, width - path.shape[1])) for path in paths]
    )


def _measured(rollouts: Rollouts) -> Tensor:
    """Where latents and predictions were off, by little so far: bool (R, S)."""
    given, _, answer = rollouts.reactions.unbind(2)
    small = given.cummax(dim=1).values < LINEAR
    return small & (given > NOTHING) & (answer > NOTHING)


def _miss(rollouts: Rollouts, there: Tensor, found: Tensor) -> Tensor:
    """Mean miss over the steps that were measured; of energies by their logs, without outliers."""
    (given, inner, answer), (known, along, answered) = (
        each[there].unbind(1) for each in (found, rollouts.reactions)
    )
    energy, reply = (
        (1 + ((one + TINY) / other).log().square()).sqrt() - 1
        for one, other in ((given, known), (answer, answered))
    )
    cosine = inner / (given * answer + TINY**2).sqrt() - along / (known * answered).sqrt()
    return (energy + reply / 2 + cosine.square()).mean()
