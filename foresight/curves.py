"""From the rows of a comparison to speed-quality curves and figures at equal measured speed.

Every method is swept over its knob; a curve joins the means of its settings over all videos. At
a given speed-up a method stands for the best it can do at that speed or a higher one, linearly
interpolated between its non-dominated settings and never extrapolated. One setting reaches other
speeds in other configurations, so that several are read one by one and then averaged.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

VIDEO_KEYS = [
    "prompt",
    "seed",
    "height",
    "width",
    "num_frames",
    "num_inference_steps",
    "guidance_scale",
]
CONFIGURATION_KEYS = VIDEO_KEYS[2:]
SPEEDUPS = (1.5, 2.0, 2.5, 3.0)


def speed_quality_curve(results: pd.DataFrame, method: str, metric: str) -> pd.DataFrame:
    """Mean speed-up and mean quality of every setting of one method.

    Args:
        results: Rows of a comparison, in one configuration.
        method: Which method.
        metric: The column to average, higher is better (`psnr`, `ssim`, `vmaf`).

    Returns:
        Columns `setting`, `speedup`, the metric, `num_videos` and `on_envelope` (no other setting
        of the method is at least as fast and as good), ordered by speed-up.
    """
    rows = results[results["method"] == method]
    curve = (
        rows.groupby("setting", sort=False)
        .agg(speedup=("speedup", "mean"), **{metric: (metric, "mean")}, num_videos=(metric, "size"))
        .reset_index()
        .sort_values("speedup", ignore_index=True)
    )
    curve["on_envelope"] = on_envelope(curve["speedup"].to_numpy(), curve[metric].to_numpy())
    return curve


def on_envelope(speedups: np.ndarray, quality: np.ndarray) -> np.ndarray:
    """Mark the settings that no other one matches in both speed and quality.

    Args:
        speedups: (K,) mean speed-up of each setting.
        quality: (K,) mean quality, higher is better; NaN is never marked.

    Returns:
        bool (K,).
    """
    marks = np.zeros(len(speedups), dtype=bool)
    best = -np.inf
    for index in np.lexsort((-quality, -speedups)):  # fastest first, then best first
        if quality[index] > best:
            marks[index], best = True, quality[index]
    return marks


def at_speedup(speedups: np.ndarray, quality: np.ndarray, target: float) -> float:
    """What a sweep reaches at one speed-up.

    Args:
        speedups: (K,) mean speed-up of each setting.
        quality: (K,) mean quality, higher is better.
        target: The speed-up asked for.

    Returns:
        The envelope's quality there (below its slowest setting: that setting's, since a faster
        and better one serves too); NaN where the sweep does not span the target.
    """
    known = ~np.isnan(quality)
    speedups, quality = speedups[known], quality[known]
    if not len(speedups) or not speedups.min() <= target <= speedups.max():
        return float("nan")
    marks = on_envelope(speedups, quality)
    order = np.argsort(speedups[marks])
    return float(np.interp(target, speedups[marks][order], quality[marks][order]))


def at_equal_speed(
    results: pd.DataFrame,
    speedups: Sequence[float] = SPEEDUPS,
    *,
    metric: str = "psnr",
    learned: str | None = None,
    seed: int = 0,
    num_resamples: int = 1000,
) -> pd.DataFrame:
    """Every method's quality at the same measured denoising speed-ups.

    Args:
        results: Rows of a comparison.
        speedups: Where to read the curves.
        metric: The column to compare, higher is better.
        learned: The method the others are compared with; by default the one the rows mark.
        seed: Of the bootstrap over videos.
        num_resamples: How many times the videos are drawn anew.

    Returns:
        One row per (method, speedup): `value` with its bootstrap interval `low`..`high`, and
        `gain`, the learned method's value minus this one's, with the paired interval
        `gain_low`..`gain_high` (the same videos drawn for both). NaN outside a method's sweep. Of
        several configurations the mean; videos are drawn within each.
    """
    learned = learned or learned_method(results)
    methods = list(dict.fromkeys(results["method"]))
    videos = results[VIDEO_KEYS].drop_duplicates()
    generator = np.random.default_rng(seed)
    reached = {method: np.zeros((1 + num_resamples, len(speedups))) for method in methods}
    groups = [group for _, group in videos.groupby(CONFIGURATION_KEYS, sort=False)]
    for group in groups:
        draws = generator.integers(len(group), size=(num_resamples, len(group)))
        counts = [np.bincount(draw, minlength=len(group)) for draw in draws]
        weights = np.array([np.ones(len(group), int), *counts])  # row 0: the videos as they are
        for method in methods:
            found = _reached(results, method, metric, group, weights, speedups)
            reached[method] += found / len(groups)
    rows = []
    for method in methods:
        for column, speedup in enumerate(speedups):
            values = reached[method][:, column]
            row = {"method": method, "speedup": speedup, "value": values[0]}
            row["low"], row["high"] = _interval(values)
            if learned in reached and method != learned:
                gains = reached[learned][:, column] - values
                row["gain"] = gains[0]
                row["gain_low"], row["gain_high"] = _interval(gains)
            rows.append(row)
    columns = ["method", "speedup", "value", "low", "high", "gain", "gain_low", "gain_high"]
    return pd.DataFrame(rows).reindex(columns=columns)


def equal_speed_table(results: pd.DataFrame, *, metric: str = "psnr", decimals: int = 1) -> str:
    """The quality of every method at equal measured speed, in Markdown; best method first."""
    table = at_equal_speed(results, metric=metric).pivot(
        index="method", columns="speedup", values="value"
    )
    table = table.sort_values(2.0, ascending=False)
    cells = table.map(lambda value: "-" if np.isnan(value) else f"{value:.{decimals}f}")
    lines = [f"| {metric} at | {' | '.join(f'{speedup:g}x' for speedup in table.columns)} |"]
    lines.append("|---" * (1 + len(table.columns)) + "|")
    lines += [
        f"| {name} | {' | '.join(row)} |"
        for name, row in zip(cells.index, cells.to_numpy(), strict=True)
    ]
    return "\n".join(lines)


def learned_method(results: pd.DataFrame) -> str | None:
    """The name of the learned policy in a comparison: its first method marked `learned`."""
    if "learned" not in results:
        return None
    names = results.loc[results["learned"].astype(bool), "method"]
    return None if names.empty else str(names.iloc[0])


def _reached(
    results: pd.DataFrame,
    method: str,
    metric: str,
    videos: pd.DataFrame,
    weights: np.ndarray,
    speedups: Sequence[float],
) -> np.ndarray:
    """Quality at each speed-up for every resampling of the videos: (B, len(speedups))."""
    keys = pd.MultiIndex.from_frame(videos)
    rows = results[results["method"] == method]
    means = {}
    for column in ("speedup", metric):
        table = rows.groupby([*VIDEO_KEYS, "setting"])[column].mean().unstack("setting")
        values = table.reindex(keys).to_numpy(float)  # (V, K)
        known = ~np.isnan(values)
        with np.errstate(invalid="ignore"):
            means[column] = (weights @ np.where(known, values, 0)) / (weights @ known)
    return np.array([
        [at_speedup(speed, quality, target) for target in speedups]
        for speed, quality in zip(means["speedup"], means[metric], strict=True)
    ])  # fmt: skip


def _interval(values: np.ndarray) -> tuple[float, float]:
    """The middle 95 % of resampled values; NaN unless nearly every resampling has one."""
    resampled = values[1:][~np.isnan(values[1:])]
    if np.isnan(values[0]) or len(resampled) < 0.9 * (len(values) - 1) or not len(resampled):
        return float("nan"), float("nan")
    low, high = np.quantile(resampled, [0.025, 0.975])
    return float(low), float(high)
