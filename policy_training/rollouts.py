"""Roll-outs as tensors: what each executed plan did to the model's output, and to the video."""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from foresight.plan import COMPUTE, FORECAST
from policy_training.generations import Bucket
from policy_training.labels import best_coefficient, forecast_error, moments


class Rollouts(NamedTuple):
    """R roll-outs of plans at the output, of generations with the same number of steps S."""

    actions: Tensor
    """(R, S) compute, reuse or forecast."""
    coefficients: Tensor
    """(R, S) of the forecasts."""
    steps: Tensor
    """(R, S, 3) step s, and the steps a and p that its residual was taken from."""
    ends: Tensor
    """(R, S) the step that is computed after s and corrects for it; s itself where none does."""
    errors: Tensor
    """(R, S) squared error of the model's output, read off the uncached trace."""
    left: Tensor
    """(R, S) what interpolation leaves of it, at most `errors`; `errors` where nothing corrects."""
    strengths: Tensor
    """(R, S) how much of the rest is made good, 0 to 1."""
    sigmas: Tensor
    """(R, S)"""
    embedding: Tensor
    """(R, D)"""
    features: Tensor
    """(R, C)"""
    log_final_error: Tensor
    """(R,) log of the measured error of the final latents."""
    psnr: Tensor
    """(R,) of the video, in dB."""


def sources(actions: np.ndarray) -> Tensor:
    """Steps s, a, p for each step of a plan's column (S,): int64 (S, 3).

    A computed step is its own source; p = a where nothing was computed before a.
    """
    steps, computed = [], []
    for step, action in enumerate(actions):
        if action == COMPUTE:
            computed.append(step)
        steps.append((step, computed[-1], computed[-2] if len(computed) > 1 else computed[-1]))
    return torch.tensor(steps)


def executed_errors(
    gram: Tensor, actions: np.ndarray, steps: Tensor, coefficients: np.ndarray
) -> Tensor:
    """Squared error of one residual at each step of an executed plan, shape (S,); 0 if computed.

    Args:
        gram: (S, S) inner products of the residual over steps, in the uncached generation.
        actions: (S,) compute, reuse or forecast.
        steps: (S, 3) from `sources`.
        coefficients: (S,) of the forecasts.
    """
    query = moments(gram[None], torch.zeros(len(actions), dtype=torch.long), steps)
    betas = torch.from_numpy(np.where(actions == FORECAST, coefficients, 0).astype(np.float32))
    return torch.where(torch.from_numpy(actions != COMPUTE), forecast_error(query, betas), 0.0)


def correcting_steps(actions: np.ndarray, corrections: np.ndarray) -> Tensor:
    """The step that makes good what each skipped step missed: int64 (S,); s itself if none does.

    Args:
        actions: (S,) compute, reuse or forecast.
        corrections: (S, 2) kappa and lambda.
    """
    ends, after = [], None
    for step in reversed(range(len(actions))):
        if actions[step] == COMPUTE:
            after = step if corrections[step].any() else None
            ends.append(step)
        else:
            ends.append(step if after is None else after)
    return torch.tensor(ends[::-1])


def corrected_errors(gram: Tensor, errors: Tensor, steps: Tensor, ends: Tensor) -> Tensor:
    """What is left of squared errors (S,) once the steps `ends` (S,) have corrected for them."""
    target, latest = steps[:, 0], steps[:, 1]
    query = moments(
        gram[None], torch.zeros_like(target), torch.stack([target, ends, latest], dim=1)
    )
    left = forecast_error(query, best_coefficient(query))
    return torch.where(ends > target, torch.minimum(left, errors), errors)


def gather_rollouts(buckets: list[Bucket]) -> list[Rollouts]:
    """The roll-outs of plans at the output, of each bucket that has some."""
    found = [_gather(bucket) for bucket in buckets]
    return [rollouts for rollouts in found if rollouts is not None]


def _gather(bucket: Bucket) -> Rollouts | None:
    found: list[tuple[int, np.ndarray, np.ndarray, dict[str, Any]]] = []
    for index, rollouts in enumerate(bucket.rollouts):
        for rollout in rollouts:
            plan = np.asarray(rollout["plan"]).astype(np.int64)
            shared = rollout["at_output"] and (plan != COMPUTE).any()
            if shared and rollout["final_error"] > 0:
                coefficients = np.asarray(rollout["coefficients"]).mean(axis=1)
                found.append((index, plan[:, 0], coefficients, rollout))
    if not found:
        return None
    rows = torch.tensor([index for index, *_ in found])
    steps = [sources(actions) for _, actions, _, _ in found]
    errors = [
        executed_errors(bucket.gram[index, 0], actions, source, coefficients)
        for (index, actions, coefficients, _), source in zip(found, steps, strict=True)
    ]
    ends = [correcting_steps(actions, _corrections(rollout)) for _, actions, _, rollout in found]
    left = [
        corrected_errors(bucket.gram[index, 0], error, source, end)
        for (index, *_), error, source, end in zip(found, errors, steps, ends, strict=True)
    ]
    final = torch.tensor([float(rollout["final_error"]) for *_, rollout in found])
    return Rollouts(
        actions=torch.from_numpy(np.stack([actions for _, actions, _, _ in found])),
        coefficients=torch.tensor(np.stack([betas for _, _, betas, _ in found])).float(),
        steps=torch.stack(steps),
        ends=torch.stack(ends),
        errors=torch.stack(errors),
        left=torch.stack(left),
        strengths=torch.stack([_strengths(rollout) for *_, rollout in found]),
        sigmas=bucket.sigmas[rows],
        embedding=bucket.embedding[rows],
        features=bucket.features[rows],
        log_final_error=final.log(),
        psnr=torch.tensor([float(rollout["psnr"]) for *_, rollout in found]),
    )


def _corrections(rollout: dict[str, Any]) -> np.ndarray:
    """(S, 2); zeros in trace sets from before plans corrected."""
    found = rollout.get("corrections")
    return np.zeros((len(rollout["plan"]), 2)) if found is None else np.asarray(found)


def _strengths(rollout: dict[str, Any]) -> Tensor:
    """(S,); ones in trace sets from before corrections had a strength."""
    found = rollout.get("strengths")
    return torch.ones(len(rollout["plan"])) if found is None else torch.tensor(found).float()
