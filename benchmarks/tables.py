"""docs/results.md: every table from the committed results of comparisons.

    python benchmarks/tables.py docs/results/tiny-latte docs/results/tiny-wan

Each folder holds a comparison's `results.csv`, and `setup.json` with the model and the machine. The
tables say where the learned policy loses: a gain below zero, or an interval that includes it.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import markdown  # noqa: E402 - found from the root of the checkout
from foresight.curves import (  # noqa: E402
    CONFIGURATION_KEYS,
    VIDEO_KEYS,
    at_equal_speed,
    learned_method,
)

OUTPUT = ROOT / "docs" / "results.md"
METRICS = {"psnr": ("PSNR, dB", 1), "ssim": ("SSIM", 3), "vmaf": ("VMAF", 1)}
INTRODUCTION = """\
# Results

Written by `make results`, from the files beside it. Every method ran through the same runtime on
the same prompts, seeds and machine; quality is measured against the uncached video, speed is that
of the denoising loop, with the uncached one measured in between. What is done once a configuration
is left out of it: the calibration of MagCache and TeaCache, and the search for the steps of the
learned policy's plans; planning each video counts. A method stands for the best of
its sweep at a speed; of several configurations the mean of what it reaches in each. Prompts, seeds
and configurations were not trained on. Intervals are 95 %
bootstraps over videos, the same videos drawn for both methods of a difference. `latte-tuned` and
`wan-tuned` are the models after 200 more steps of training, with the policies from before it.
"""


def main() -> None:
    """Read the folders and write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    args = parser.parse_args()
    parts = [INTRODUCTION]
    for folder in args.folders:
        results = pd.read_csv(folder / "results.csv")
        setup = json.loads((folder / "setup.json").read_text("utf-8"))
        parts += [f"## {folder.name}\n", *sections(results, setup)]
    args.output.write_text("\n".join(parts), "utf-8")
    print(args.output)  # noqa: T201


def sections(results: pd.DataFrame, setup: dict) -> Iterator[str]:
    """The page's part on one model, piece by piece."""
    learned = learned_method(results)
    assert learned is not None, "a comparison without a learned policy has no headline"
    yield f"{results['device'].iloc[0]}, {setup['dtype'].removeprefix('torch.')}.\n"
    yield "PSNR (dB) at equal measured denoising speed-up, mean of the configurations below:\n"
    yield table(quality(results, "psnr", *METRICS["psnr"]))
    yield "What the learned policy gains in PSNR (dB), with its interval:\n"
    yield table(gains(results))
    yield "The worst video's PSNR (dB):\n"
    yield table(worst(results))
    for shape, some in results.groupby(CONFIGURATION_KEYS):
        videos = some[VIDEO_KEYS].drop_duplicates()
        height, width, frames, steps, guidance = shape
        yield f"### {height}x{width}, {frames} frames, {steps} steps, guidance {guidance:g}\n"
        yield f"{len(videos)} videos. At equal measured denoising speed-up:\n"
        for metric, (label, decimals) in METRICS.items():
            if some[metric].notna().any():
                yield table(quality(some, metric, label, decimals))
        yield "What the learned policy gains in PSNR (dB), with its interval:\n"
        yield table(gains(some))
        yield "The worst video's PSNR (dB):\n"
        yield table(worst(some))
    asked = results[results["method"] == learned]
    yield "### The dials, over all configurations\n"
    yield table(speed_dial(asked))
    promised = asked[asked["requested_quality"].notna()]
    if len(promised):
        yield "Quality, asked for nine videos of ten:\n"
        yield table(quality_dial(promised))
    for name, reason in setup.get("not_applicable", {}).items():
        yield f"* `{name}` was left out: {reason}."
    yield ""


def quality(results: pd.DataFrame, metric: str, label: str, decimals: int) -> pd.DataFrame:
    """Methods by speed-up, the best at 2x first."""
    values = at_equal_speed(results, metric=metric).pivot(
        index="method", columns="speedup", values="value"
    )
    values = values.sort_values(2.0, ascending=False)
    cells = values.map(lambda value: _number(value, decimals))
    cells = cells.rename(columns=lambda speedup: f"{speedup:g}x")
    return cells.rename_axis(label).reset_index()


def gains(results: pd.DataFrame) -> pd.DataFrame:
    """Gain over every other method, by speed-up."""
    rows = at_equal_speed(results)
    rows = rows[rows["gain"].notna()].copy()
    rows["cell"] = [
        f"{gain:+.1f}" + ("" if np.isnan(low) else f" [{low:+.1f}, {high:+.1f}]")
        for gain, low, high in rows[["gain", "gain_low", "gain_high"]].to_numpy()
    ]
    cells = rows.pivot(index="method", columns="speedup", values="cell").fillna("-")
    return cells.rename(columns=lambda speedup: f"{speedup:g}x").reset_index()


def worst(results: pd.DataFrame) -> pd.DataFrame:
    """The lowest PSNR of any video at each speed-up; only of methods that every video has."""
    each = pd.concat(
        at_equal_speed(rows, num_resamples=1) for _, rows in results.groupby(VIDEO_KEYS)
    )
    low = each.groupby(["method", "speedup"])["value"].agg(lambda v: v.min(skipna=False))
    cells = low.unstack("speedup").sort_values(2.0, ascending=False)
    cells = cells.map(lambda value: _number(value, 1))
    return cells.rename(columns=lambda speedup: f"{speedup:g}x").reset_index()


def speed_dial(asked: pd.DataFrame) -> pd.DataFrame:
    """Requested against measured speed-up; medians, and the middle 80 % of videos."""
    rows = []
    for request, some in asked.groupby("requested_speedup"):
        low, middle, high = some["speedup"].quantile([0.1, 0.5, 0.9])
        rows.append(
            {
                "asked": f"{request:g}x",
                "got": f"{middle:.2f}x",
                "off by": f"{100 * (middle / request - 1):+.1f} %",
                "middle 80 %": f"{low:.2f} to {high:.2f}",
            }
        )
    return pd.DataFrame(rows)


def quality_dial(promised: pd.DataFrame) -> pd.DataFrame:
    """Requested PSNR against the share of videos that reach it, and what speed that leaves."""
    rows = []
    for request, some in promised.groupby("requested_quality"):
        rows.append(
            {
                "asked": f"{request:g} dB",
                "videos that reach it": f"{(some['psnr'] >= request).mean():.0%}",
                "median PSNR": f"{some['psnr'].median():.1f} dB",
                "lowest": f"{some['psnr'].min():.1f} dB",
                "median speed-up": f"{some['speedup'].median():.2f}x",
            }
        )
    return pd.DataFrame(rows)


def table(frame: pd.DataFrame) -> str:
    """A Markdown table, and an empty line."""
    return "\n".join([*markdown.table(list(frame.columns), frame.to_numpy().tolist()), ""])


def _number(value: float, decimals: int) -> str:
    return "-" if np.isnan(value) else f"{value:.{decimals}f}"


if __name__ == "__main__":
    main()
