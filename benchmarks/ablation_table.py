"""From the rows of the ablations to their table."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from benchmarks import markdown
from foresight.curves import VIDEO_KEYS
from foresight.metrics import bootstrap_interval

FULL = "full"
TOLERANCE = 0.03
LABELS = {
    FULL: "**the policy**",
    "seed": "trained with another seed",
    "without-prompt": "trained without the prompt",
    "shuffled-prompt": "trained with shuffled prompts",
    "off-policy": "trained without the on-policy round",
    "generations-20": "20 profiled generations, no on-policy round",
    "generations-10": "10 profiled generations, no on-policy round",
    "generations-5": "5 profiled generations, no on-policy round",
    "no-gains": "no gains: an error counts the same at every step, so none is corrected",
    "one-step-label": "nothing from roll-outs: damage is the sum of squared output errors",
    "no-reaction": "the solver's response alone: no reaction of the model, no doubts",
    "power-0.5": "runs add up in amplitude (power 0.5)",
    "power-1": "runs add up in energy (power 1)",
    "worst-run": "only the worst run counts",
    "constant": "one coefficient for all forecasts",
    "damped-line": "damped linear extrapolation",
    "no-corrections": "no corrections",
    "stack": "no corrections, forecast at the residual of the whole stack",
    "reuse-only": "neither forecasts nor corrections, planned for that",
    "plain": "the policy's steps, plain reuse (when without how)",
    "even": "evenly spaced steps (how without when)",
    "warmed-up": "warm-up, then evenly spaced steps (how without when)",
    "warmed-up-plain": "warm-up, then evenly spaced steps, plain reuse (neither)",
    "foresight-output": "Foresight's decisions per block, outputs reused",
    "foresight-residual": "Foresight's decisions per block, residuals reused",
    "foresight-forecast": "Foresight's decisions per block, learned forecasts of residuals",
    "searched": "steps searched for each video, knowing the uncached one",
}
INTRODUCTION = """\
# Ablations of the learned policy

Mean PSNR in dB against the uncached video when as many steps are computed as the speed-up stands
for (S / speed-up, rounded). Model {model}, {device}, videos: {videos}.

Plans that skip all blocks of a step cost the same per computed step, so the budgets are exactly
equal and nothing depends on timing. In brackets the difference to the policy, with its 95 %
interval: a bootstrap over videos, the same videos drawn for both. It does not include the chance of
training, which the row of another seed gives an idea of.
"""


def summarize(rows: pd.DataFrame, speedups: Sequence[float], seed: int = 0) -> pd.DataFrame:
    """Every variant at every speed-up.

    Args:
        rows: Of all runs; those of the full policy among them.
        speedups: Columns of the table.
        seed: Of the bootstrap.

    Returns:
        Columns `variant`, `speedup`, `setting`, `videos`, `computed` (mean share of block calls),
        `psnr` (mean, dB), `difference` to the full policy on the same videos with its interval
        `low`..`high`.
    """
    rows = pd.concat(
        [rows[rows["speedup"].notna()], *_swept(rows[rows["speedup"].isna()], rows, speedups)]
    )
    full = rows[rows["variant"] == FULL]
    found = []
    for variant in [name for name in LABELS if name in set(rows["variant"])]:
        for speedup in speedups:
            some = rows[(rows["variant"] == variant) & (rows["speedup"] == speedup)]
            if some.empty:
                continue
            paired = some.merge(
                full[full["speedup"] == speedup], on=VIDEO_KEYS, suffixes=("", "_full")
            )
            difference = (paired["psnr"] - paired["psnr_full"]).to_numpy()
            low, high = bootstrap_interval(difference, seed)
            found.append(
                {
                    "variant": variant,
                    "speedup": speedup,
                    "setting": some["setting"].iloc[0],
                    "videos": len(some),
                    "computed": some["computed"].mean(),
                    "psnr": some["psnr"].mean(),
                    "difference": difference.mean(),
                    "low": low,
                    "high": high,
                }
            )
    return pd.DataFrame(found)


def _swept(
    swept: pd.DataFrame, rows: pd.DataFrame, speedups: Sequence[float]
) -> list[pd.DataFrame]:
    """What stands for a variant that cannot be set to a number of steps, at each speed-up.

    Of its settings whose mean share of computed block calls is within `TOLERANCE` of the policy's
    the best, chosen on these very videos; where there is none, the nearest.
    """
    full = rows[rows["variant"] == FULL]
    chosen = []
    for _, some in swept.groupby("variant"):
        means = some.groupby("setting")[["computed", "psnr"]].mean()
        for speedup in speedups:
            budget = full.loc[full["speedup"] == speedup, "computed"].mean()
            off = (means["computed"] - budget).abs()
            near = means[off <= TOLERANCE]
            best = off.idxmin() if near.empty else near["psnr"].idxmax()
            chosen.append(some[some["setting"] == best].assign(speedup=speedup))
    return chosen


def page(summary: pd.DataFrame, model: str, device: str) -> str:
    """The table in Markdown, with what its rows mean."""
    speedups = list(dict.fromkeys(summary["speedup"]))
    videos = int(summary["videos"].max())
    rows, notes = [], []
    for variant, some in summary.groupby("variant", sort=False):
        cells = {row.speedup: _cell(row) for row in some.itertuples()}
        rows.append([LABELS[str(variant)], *(cells.get(speedup, "-") for speedup in speedups)])
        notes += _notes(LABELS[str(variant)], some, videos)
    header = ["PSNR at", *(f"{speedup:g}x" for speedup in speedups)]
    about = INTRODUCTION.format(videos=videos, model=model, device=device)
    lines = [about, *markdown.table(header, rows), ""]
    return "\n".join([*lines, *notes, ""] if notes else lines)


def _cell(row: tuple) -> str:
    value = f"{row.psnr:.1f}"
    if row.variant == FULL:
        return value
    interval = "" if np.isnan(row.low) else f" [{row.low:+.1f}, {row.high:+.1f}]"
    return f"{value} ({row.difference:+.1f}{interval})"


def _notes(label: str, some: pd.DataFrame, videos: int) -> list[str]:
    """Settings, other budgets, and fewer videos than the rest, where there are any."""
    facts = []
    if (some["videos"] < videos).any():
        facts.append(f"{some['videos'].min()} videos; the difference is to the policy on these")
    facts += [
        f"{row.speedup:g}x computes {row.computed:.0%} ({row.setting})"
        for row in some.itertuples()
        if row.variant.startswith("foresight")
    ]
    if not facts and some["setting"].iloc[0]:
        facts.append(some["setting"].iloc[0])
    return [f"* {label}: {'; '.join(facts)}"] if facts else []
