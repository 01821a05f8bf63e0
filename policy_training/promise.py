"""What roll-outs say about the PSNR that a predicted damage means."""

import numpy as np
import torch

from foresight.policies.promise import QualityPromise
from policy_training.dataset import TraceData
from policy_training.module import ReuseTraining
from policy_training.rollouts import Rollouts

MIN_FITTED = 8


def quality_promise(module: ReuseTraining, data: TraceData) -> QualityPromise | None:
    """Fit PSNR against predicted log damage on training roll-outs; keep the held-out misses.

    Returns:
        None if there are too few roll-outs, or predictions that say nothing about quality.
    """
    damage, psnr = _predicted_and_measured(module, data.train_rollouts)
    held_out, reached = _predicted_and_measured(module, data.held_out_rollouts)
    finite = np.isfinite(psnr)  # videos without a difference are infinitely good
    if finite.sum() < MIN_FITTED or not len(held_out):
        return None
    slope, offset = np.polyfit(damage[finite], psnr[finite], 1)
    if slope >= 0:
        return None
    misses = reached - (offset + slope * held_out)
    return QualityPromise(float(offset), float(slope), np.sort(misses).tolist())


@torch.no_grad()
def _predicted_and_measured(
    module: ReuseTraining, groups: list[Rollouts]
) -> tuple[np.ndarray, np.ndarray]:
    """Log damage as a planner predicts it, and PSNR in dB, of all roll-outs; both (R,)."""
    if not groups:
        return np.zeros(0), np.zeros(0)
    damage = torch.cat([module.predicted_damage(group) for group in groups])
    return damage.double().numpy(), torch.cat([group.psnr for group in groups]).double().numpy()
