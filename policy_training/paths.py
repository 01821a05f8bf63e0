"""Mean predictions of every schedule that was profiled."""

from typing import NamedTuple

import numpy as np
import torch

from foresight.policies.multistep import TINY
from foresight.policies.network import OUTPUT, ReuseModel
from foresight.solver import Solver
from policy_training.generations import Bucket


class Schedule(NamedTuple):
    """What `ProfiledPath.fit` takes."""

    sigmas: np.ndarray
    gram: np.ndarray
    solver: Solver
    guidance_scale: float


def profiled_schedules(buckets: list[Bucket]) -> list[Schedule]:
    """One for each number of steps and guidance scale; the sizes of videos are taken together."""
    found = []
    for bucket in buckets:
        scales = np.asarray(bucket.guidance_scales)
        for scale in sorted(set(bucket.guidance_scales)):
            members = np.flatnonzero(scales == scale)
            first = members[0]
            gram = mean_gram(bucket.gram[members, OUTPUT].double().numpy())
            facts = bucket.sigmas[first].double().numpy(), gram, bucket.solvers[first]
            found.append(Schedule(*facts, scale))
    return found


def mean_gram(grams: np.ndarray) -> np.ndarray:
    """The mean (S, S) of inner products (G, S, S), as if all generations moved alike in sum.

    Without that, the few that move most would decide alone what is expected of the others.
    """
    moved = np.array([_changes(gram).sum() for gram in grams])
    return np.average(grams, axis=0, weights=1 / np.maximum(moved, max(moved.max() * 1e-6, TINY)))


@torch.no_grad()
def trust_in_pace(model: ReuseModel, held_out: list[Bucket]) -> float:
    """How much of what the network says of a prompt's pace holds on prompts it has not seen.

    The slope of a regression through the origin of measured on predicted log pace, from 0 to 1.
    """
    said, measured = [np.zeros(0)], [np.zeros(0)]
    for bucket in held_out:
        for index, gram in enumerate(bucket.gram[:, OUTPUT].double().numpy()):
            sigmas = bucket.sigmas[index]
            facts = bucket.solvers[index], bucket.guidance_scales[index]
            usual = model.path(sigmas.double().numpy(), *facts)
            changes = _changes(gram), _changes(usual @ usual.T)
            here = slice(index, index + 1)
            pace = model.log_pace(sigmas, bucket.embedding[here], bucket.features[here])
            said.append(pace[1:].double().numpy())
            measured.append(np.log(np.maximum(changes[0], TINY) / np.maximum(changes[1], TINY)))
    pace = np.concatenate(said)
    slope = pace @ np.concatenate(measured) / max(pace @ pace, TINY)
    return float(np.clip(slope, 0, 1))


def _changes(gram: np.ndarray) -> np.ndarray:
    """Squared changes from step to step, (S - 1,)."""
    return np.diag(np.diff(np.diff(gram, axis=0), axis=1))
