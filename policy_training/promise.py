"""What roll-outs say about the PSNR that a predicted damage means."""

import dataclasses

import numpy as np
from sklearn.model_selection import LeaveOneGroupOut

from foresight.policies.promise import QualityPromise
from policy_training.damage import predicted_damage
from policy_training.dataset import TraceData
from policy_training.module import ReuseTraining

MIN_FITTED = 8
NOTHING = 1e-3  # dB


def quality_promise(module: ReuseTraining, data: TraceData) -> QualityPromise | None:
    """Fit PSNR and its usual miss to predicted damage; keep the misses on other prompts.

    From roll-outs of the policy's own plans if there are enough: steps that were chosen because
    little damage is predicted leave more of it than others of which as little is. Every prompt's
    misses are those of what was fitted to the other prompts (cross-conformal, Vovk 2015).

    Returns:
        None if there are too few roll-outs, or predictions that say nothing about quality.
    """
    damage, psnr, prompts, planned = _known(module, data)
    told = np.isfinite(psnr)  # videos without a difference are infinitely good
    if _enough(prompts[told & planned]):
        told &= planned
    damage, psnr, prompts = damage[told], psnr[told], prompts[told]
    if not _enough(prompts):
        return None
    misses = np.zeros(len(psnr))
    for known, others in LeaveOneGroupOut().split(damage, groups=prompts):
        fitted = _fitted(damage[known], psnr[known])
        if fitted is None:
            return None
        units = np.array([fitted.usual_miss(each) for each in damage[others]])
        misses[others] = (psnr[others] - fitted.offset - fitted.slope * damage[others]) / units
    fitted = _fitted(damage, psnr)
    return fitted and dataclasses.replace(fitted, misses=np.sort(misses).tolist())


def _enough(prompts: np.ndarray) -> bool:
    """Whether the roll-outs of these prompts (R,) less those of any one can be fitted to."""
    _, counts = np.unique(prompts, return_counts=True)
    return len(counts) > 1 and len(prompts) - counts.max() >= MIN_FITTED


def _fitted(damage: np.ndarray, psnr: np.ndarray) -> QualityPromise | None:
    """A promise without misses, from damage and PSNR (R,); None if they say nothing."""
    slope, offset = np.polyfit(damage, psnr, 1)
    if slope >= 0:
        return None
    missed = np.abs(psnr - offset - slope * damage)
    return QualityPromise(float(offset), float(slope), [], *_usual_miss(damage, missed))


def _usual_miss(damage: np.ndarray, missed: np.ndarray) -> tuple[float, float, float]:
    """`usual`, `rise` and `least` of a `QualityPromise`, from misses in dB; both (R,)."""
    mean = float(missed.mean())
    if mean < NOTHING:
        return 1.0, 0.0, 1.0
    rise, usual = np.polyfit(damage, missed, 1)
    return (float(usual), float(rise), mean / 2) if rise > 0 else (mean, 0.0, mean)


def _known(module: ReuseTraining, data: TraceData) -> tuple[np.ndarray, ...]:
    """Of all roll-outs, (R,): log damage to be expected, PSNR in dB, prompt, whether planned."""
    groups = [*data.train_rollouts, *data.held_out_rollouts]
    parts = [
        (
            predicted_damage(module.model, each).double().numpy(),
            each.psnr.double().numpy(),
            each.prompts,
            each.planned,
        )
        for each in groups
    ]
    empty = np.zeros(0), np.zeros(0), np.zeros(0, str), np.zeros(0, bool)
    return tuple(np.concatenate(part) for part in zip(empty, *parts, strict=True))
