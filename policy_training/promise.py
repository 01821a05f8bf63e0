"""What roll-outs say about the PSNR that a predicted damage means."""

import dataclasses

import numpy as np
import torch

from foresight.policies.promise import QualityPromise
from policy_training.dataset import TraceData
from policy_training.module import ReuseTraining
from policy_training.rollouts import Rollouts

MIN_FITTED = 8
NOTHING = 1e-3  # dB


def quality_promise(module: ReuseTraining, data: TraceData) -> QualityPromise | None:
    """Fit PSNR and its usual miss on training roll-outs; keep the held-out misses.

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
    usual = _usual_miss(damage[finite], np.abs(psnr[finite] - offset - slope * damage[finite]))
    fitted = QualityPromise(float(offset), float(slope), [], *usual)
    units = np.array([fitted.usual_miss(each) for each in held_out])
    misses = (reached - (offset + slope * held_out)) / units
    return dataclasses.replace(fitted, misses=np.sort(misses).tolist())


def _usual_miss(damage: np.ndarray, missed: np.ndarray) -> tuple[float, float, float]:
    """`usual`, `rise` and `least` of a `QualityPromise`, from misses in dB; both (R,)."""
    mean = float(missed.mean())
    if mean < NOTHING:
        return 1.0, 0.0, 1.0
    rise, usual = np.polyfit(damage, missed, 1)
    return (float(usual), float(rise), mean / 2) if rise > 0 else (mean, 0.0, mean)


@torch.no_grad()
def _predicted_and_measured(
    module: ReuseTraining, groups: list[Rollouts]
) -> tuple[np.ndarray, np.ndarray]:
    """Log damage as a planner predicts it, and PSNR in dB, of all roll-outs; both (R,)."""
    if not groups:
        return np.zeros(0), np.zeros(0)
    damage = torch.cat([module.predicted_damage(group) for group in groups])
    return damage.double().numpy(), torch.cat([group.psnr for group in groups]).double().numpy()
