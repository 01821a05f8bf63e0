"""Roll-outs as tensors: the runs of each executed plan, and the error that it left."""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from foresight.plan import COMPUTE, skipped_runs
from foresight.policies.dynamics import Runs
from policy_training.generations import Bucket


class Rollouts(NamedTuple):
    """R roll-outs of plans at the output, of generations with the same S sigmas and solver."""

    runs: Runs
    """All of their runs of skipped steps; `which` is the roll-out."""
    corrections: Tensor
    """(B, 2) kappa and lambda of the step after each run."""
    sigmas: Tensor
    """(S,)"""
    response: Tensor
    """(S, S) of the solver."""
    gram: Tensor
    """(R, S, S) inner products of the model's output in the uncached generation."""
    embedding: Tensor
    """(R, D)"""
    features: Tensor
    """(R, C)"""
    log_final_error: Tensor
    """(R,) log of the measured error of the final latents."""
    psnr: Tensor
    """(R,) of the video, in dB."""


def gather_rollouts(buckets: list[Bucket]) -> list[Rollouts]:
    """The roll-outs of plans at the output, together where sigmas and solver are the same."""
    groups: dict[tuple[bytes, bytes], list[tuple[Bucket, int, dict[str, Any]]]] = {}
    for bucket in buckets:
        for index, rollouts in enumerate(bucket.rollouts):
            key = bucket.sigmas[index].numpy().tobytes(), bucket.response[index].numpy().tobytes()
            usable = [(bucket, index, rollout) for rollout in rollouts if _tells(rollout)]
            if usable:
                groups.setdefault(key, []).extend(usable)
    return [_stack(members) for members in groups.values()]


def _tells(rollout: dict[str, Any]) -> bool:
    """Whether anything was skipped at the output, and left an error."""
    skipped = (np.asarray(rollout["plan"]) != COMPUTE).any()
    return bool(rollout["at_output"] and skipped and rollout["final_error"] > 0)


def _stack(members: list[tuple[Bucket, int, dict[str, Any]]]) -> Rollouts:
    places = [(bucket, index) for bucket, index, _ in members]
    rollouts = [rollout for *_, rollout in members]
    runs, corrections = plan_runs(
        [np.asarray(rollout["plan"])[:, 0] == COMPUTE for rollout in rollouts],
        [np.asarray(rollout["coefficients"]).mean(axis=1) for rollout in rollouts],
        [_corrections(rollout) for rollout in rollouts],
    )
    first, index = places[0]
    return Rollouts(
        runs=runs,
        corrections=corrections,
        sigmas=first.sigmas[index],
        response=first.response[index],
        gram=torch.stack([bucket.gram[index, 0] for bucket, index in places]),
        embedding=torch.stack([bucket.embedding[index] for bucket, index in places]),
        features=torch.stack([bucket.features[index] for bucket, index in places]),
        log_final_error=torch.tensor([float(r["final_error"]) for r in rollouts]).log(),
        psnr=torch.tensor([float(rollout["psnr"]) for rollout in rollouts]),
    )


def plan_runs(
    computed: list[np.ndarray], coefficients: list[np.ndarray], corrections: list[np.ndarray]
) -> tuple[Runs, Tensor]:
    """The runs of R plans, and the corrections (B, 2) after them.

    Args:
        computed: bool (S,) of each plan.
        coefficients: (S,) of each plan's forecasts; 0 where reused or computed.
        corrections: (S, 2) of each plan.
    """
    found, betas, made = [], [], []
    for which, steps in enumerate(computed):
        for previous, latest, after in skipped_runs(steps):
            found.append((previous, latest, after, which))
            betas.append(torch.from_numpy(coefficients[which][latest + 1 : after]))
            made.append(corrections[which][after] if after < len(steps) else np.zeros(2))
    previous, latest, following, which = torch.tensor(found).unbind(1)
    padded = torch.nn.utils.rnn.pad_sequence(betas, batch_first=True)
    return Runs(previous, latest, following, which, padded), torch.from_numpy(np.stack(made))


def _corrections(rollout: dict[str, Any]) -> np.ndarray:
    """(S, 2); zeros in trace sets from before plans corrected."""
    found = rollout.get("corrections")
    return np.zeros((len(rollout["plan"]), 2)) if found is None else np.asarray(found)
