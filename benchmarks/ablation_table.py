"""From the rows of the ablations to their table."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from benchmarks import markdown
from benchmarks.ablation_variants import FULL
from foresight.curves import VIDEO_KEYS
from foresight.metrics import bootstrap_interval

INTRODUCTION = """\
# Ablations of the learned policy

Mean PSNR in dB against the uncached video when as many steps are computed as the speed-up stands
for (S / speed-up, rounded). Model {model}, {device}, videos: {videos}.

Plans that skip all blocks of a step cost the same per computed step, so the budgets are equal and
nothing depends on timing. In brackets the difference to the policy, with its 95 % interval: a
bootstrap over videos, the same videos drawn for both. It does not include the chance of training.
"""


def summarize(
    rows: pd.DataFrame, variants: Sequence[str], speedups: Sequence[float], seed: int = 0
) -> pd.DataFrame:
    """Every variant at every speed-up.

    Args:
        rows: Of all runs; those of the full policy among them.
        variants: In the order wanted.
        speedups: Columns of the table.
        seed: Of the bootstrap.

    Returns:
        Columns `variant`, `speedup`, `videos`, `computed` (mean share of steps), `psnr` (mean, dB),
        `difference` to the full policy on the same videos with its interval `low`..`high`.
    """
    full = rows[rows["variant"] == FULL]
    found = []
    for variant in variants:
        for speedup in speedups:
            some = rows[(rows["variant"] == variant) & (rows["speedup"] == speedup)]
            if some.empty:
                continue
            keys = [*VIDEO_KEYS, "speedup"]
            paired = some.merge(full, on=keys, suffixes=("", "_full"))
            difference = (paired["psnr"] - paired["psnr_full"]).to_numpy()
            low, high = bootstrap_interval(difference, seed)
            found.append(
                {
                    "variant": variant,
                    "speedup": speedup,
                    "videos": len(some),
                    "computed": some["compute_fraction"].mean(),
                    "psnr": some["psnr"].mean(),
                    "difference": difference.mean(),
                    "low": low,
                    "high": high,
                }
            )
    return pd.DataFrame(found)


def page(summary: pd.DataFrame, meanings: Mapping[str, str], model: str, device: str) -> str:
    """The table in Markdown.

    Args:
        summary: From `summarize`.
        meanings: Of the variants.
        model: Its name.
        device: Where it ran.
    """
    speedups = list(dict.fromkeys(summary["speedup"]))
    videos = int(summary["videos"].max())
    budgets = summary[summary["variant"] == FULL].set_index("speedup")["computed"]
    rows, notes = [], []
    for variant, some in summary.groupby("variant", sort=False):
        cells = {row.speedup: _cell(row) for row in some.itertuples()}
        rows.append([variant, meanings[variant], *(cells.get(each, "-") for each in speedups)])
        if (some["videos"] < videos).any():
            notes.append(f"* {variant}: {some['videos'].min()} videos, and the policy's on these")
        notes += [
            f"* {variant}: computes {row.computed:.1%} of the steps at {row.speedup:g}x"
            for row in some.itertuples()
            if abs(row.computed - budgets[row.speedup]) > 1e-6
        ]
    header = ["PSNR at", "", *(f"{speedup:g}x" for speedup in speedups)]
    about = INTRODUCTION.format(videos=videos, model=model, device=device)
    lines = [about, *markdown.table(header, rows), ""]
    return "\n".join([*lines, *notes, ""] if notes else lines)


def _cell(row: tuple) -> str:
    value = f"{row.psnr:.1f}"
    if row.variant == FULL:
        return value
    interval = "" if np.isnan(row.low) else f" [{row.low:+.1f}, {row.high:+.1f}]"
    return f"{value} ({row.difference:+.1f}{interval})"
