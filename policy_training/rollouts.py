"""Roll-outs: executed plans, and the error of the video."""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from foresight.plan import COMPUTE
from foresight.solver import Solver
from policy_training.generations import Bucket


class Rollouts(NamedTuple):
    """R roll-outs of plans at the output, of generations with the same schedule and guidance."""

    computed: np.ndarray
    """bool (R, S)"""
    weights: np.ndarray
    """(R, S, HISTORY), see `Plan`."""
    grams: np.ndarray
    """(R, S, S) inner products of the predictions of the uncached generations."""
    sigmas: Tensor
    """(S,)"""
    solver: Solver
    guidance_scale: float
    embedding: Tensor
    """(R, D)"""
    features: Tensor
    """(R, C)"""
    log_final_error: Tensor
    """(R,) log of the measured error of the final latents."""
    psnr: Tensor
    """(R,) of the video, in dB."""
    reactions: Tensor
    """(R, S, 3) what was measured at each step, see `PredictionRecorder.reaction`."""
    prompts: np.ndarray
    """(R,) their texts."""
    planned: np.ndarray
    """bool (R,), whether the plan was a trained policy's own."""


def gather_rollouts(buckets: list[Bucket]) -> list[Rollouts]:
    """The roll-outs of plans at the output; together where schedule and guidance are the same."""
    groups: dict[tuple[bytes | float, ...], list[tuple[Bucket, int, dict[str, Any]]]] = {}
    for bucket in buckets:
        for index, rollouts in enumerate(bucket.rollouts):
            response, decay, _ = bucket.solvers[index]
            parts = bucket.sigmas[index].numpy(), response, decay
            key = bucket.guidance_scales[index], *(part.tobytes() for part in parts)
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
    computed = np.stack([np.asarray(rollout["plan"])[:, 0] == COMPUTE for rollout in rollouts])
    weights = np.stack([np.asarray(rollout["weights"]) for rollout in rollouts])
    first, index = places[0]
    return Rollouts(
        computed=computed,
        weights=weights,
        grams=np.stack([bucket.gram[place, 0].double().numpy() for bucket, place in places]),
        sigmas=first.sigmas[index],
        solver=first.solvers[index],
        guidance_scale=first.guidance_scales[index],
        embedding=torch.stack([bucket.embedding[index] for bucket, index in places]),
        features=torch.stack([bucket.features[index] for bucket, index in places]),
        log_final_error=torch.tensor([float(r["final_error"]) for r in rollouts]).log(),
        psnr=torch.tensor([float(rollout["psnr"]) for rollout in rollouts]),
        reactions=torch.from_numpy(np.stack([np.asarray(r["reaction"], float) for r in rollouts])),
        prompts=np.array([rollout["prompt"] for rollout in rollouts]),
        planned=np.array([rollout["kind"] == "policy" for rollout in rollouts]),
    )
