"""Drawings of `foresight inspect` for a trace set: arrays in, matplotlib figures out."""

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import PercentFormatter

from foresight.figures import FAINT, INK
from foresight.plotting import CHANGE, CYCLE, DASHES, NOISE, cycle, heat_map, legend, tidy, title


def block_changes(changes: np.ndarray, rows: dict[str, list[int]], num_generations: int) -> Figure:
    """Change per block and step: a heat map for each kind of block, and a few blocks as lines.

    Args:
        changes: (N, S - 1) mean over generations.
        rows: Block indices of each kind.
        num_generations: How many went into the mean.
    """
    height = max(4.2, 1.6 + 0.17 * len(changes) + 0.5 * len(rows))
    figure = Figure(figsize=(11, height), layout="constrained")
    heights = [len(members) for members in rows.values()]
    grid = figure.add_gridspec(len(rows), 2, height_ratios=heights, width_ratios=[1.15, 1])
    norm = LogNorm(changes.min(), changes.max())
    maps = [figure.add_subplot(grid[index, 0]) for index in range(len(rows))]
    for axes, (kind, members) in zip(maps, rows.items(), strict=True):
        image = heat_map(axes, changes[members], norm, first_step=1)
        tidy(axes, ylabel=kind, xlabel="denoising step" if axes is maps[-1] else "")
    figure.colorbar(image, ax=maps, label=CHANGE, shrink=0.9)
    lines = figure.add_subplot(grid[:, 1])
    for colour, (kind, members) in zip(cycle(len(rows)), rows.items(), strict=True):
        chosen = sorted({0, len(members) // 2, len(members) - 1})
        for depth, dash in zip(chosen, DASHES, strict=False):
            values = changes[members[depth]]
            steps = range(1, len(values) + 1)
            lines.plot(steps, values, dash, color=colour, lw=1.8, label=f"{kind} {depth}")
    lines.set_yscale("log")
    tidy(lines, xlabel="denoising step", ylabel=CHANGE, grid=True)
    legend(lines)
    means = changes.mean(axis=1)
    title(
        figure,
        f"Each layer has its own pattern: the most restless block changes "
        f"{means.max() / means.min():.1f} times as much as the calmest",
        f"||r[s] - r[s-1]||² / ||r[s]||², mean of {num_generations} generations at "
        f"{changes.shape[1] + 1} steps",
    )
    return figure


def configuration_curves(curves: dict[str, tuple[np.ndarray, np.ndarray]]) -> Figure:
    """Change of the model's output in every configuration, per step and per unit of noise.

    Args:
        curves: By configuration: sigmas (S,), changes (G, S - 1) of its generations.
    """
    figure = Figure(figsize=(11, 4.2 + 0.2 * len(curves)), layout="constrained")
    left, right = figure.subplots(1, 2)
    for number, (name, (sigmas, changes)) in enumerate(curves.items()):
        style = {
            "color": CYCLE[number % len(CYCLE)],
            "ls": DASHES[number // len(CYCLE) % len(DASHES)],
            "lw": 1.8,
        }
        speed = np.sqrt(changes) / np.maximum(-np.diff(sigmas), 1e-6)
        for axes, values in ((left, changes), (right, speed)):
            low, high = np.quantile(values, [0.1, 0.9], axis=0)
            axes.fill_between(sigmas[1:], low, high, color=style["color"], alpha=0.15, lw=0)
            axes.plot(sigmas[1:], values.mean(axis=0), label=name, **style)
    for axes, heading, label in (
        (left, "per step", CHANGE),
        (right, "per unit of noise removed", "root of the change / share of noise removed"),
    ):
        axes.set_yscale("log")
        axes.invert_xaxis()
        axes.set_title(heading, loc="left", fontsize=10, color=INK)
        tidy(axes, xlabel=NOISE, ylabel=label, grid=True)
    handles, labels = left.get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", frameon=False, fontsize=9, labelcolor=INK
    )
    totals = [changes.sum(axis=1).mean() for _, changes in curves.values()]
    finding = (
        f"total change differs {max(totals) / min(totals):.2f}-fold between configurations"
        if len(totals) > 1
        else "one configuration only"
    )
    title(
        figure,
        f"Across configurations: {finding}",
        "The model's output; line: mean, band: middle 80% of generations",
    )
    return figure


def prompt_spread(categories: dict[str, list[float]], shares: dict[str, float]) -> Figure:
    """Total change of every generation by category, and what explains the change of blocks.

    Args:
        categories: By category: total change of each generation over its configuration's mean.
        shares: Of the variance, by source.
    """
    every = np.concatenate([np.asarray(values) for values in categories.values()])
    figure = Figure(figsize=(11, max(3.6, 1.7 + 0.3 * len(categories))), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1.5, 1])
    ordered = sorted(categories.items(), key=lambda item: np.median(item[1]))
    rng = np.random.default_rng(0)
    for row, (_, values) in enumerate(ordered):
        jitter = row + rng.uniform(-0.22, 0.22, len(values))
        left.plot(values, jitter, "o", ms=4.5, color=CYCLE[0], alpha=0.45, mew=0)
        left.plot(
            [np.median(values)] * 2, [row - 0.36, row + 0.36], color=CYCLE[1], lw=2.4, zorder=1
        )
    left.axvline(1, color=FAINT, lw=1, zorder=0)
    left.set_yticks(range(len(ordered)), [f"{name} ({len(values)})" for name, values in ordered])
    left.set_xlim(min(0.9, every.min() - 0.05), max(1.1, every.max() + 0.05))
    left.set_ylim(-0.6, len(ordered) - 0.4)
    tidy(
        left, xlabel="total change of the output, over the mean of its configuration", integer=False
    )
    left.set_title("by category; dot: generation, bar: median", loc="left", fontsize=10, color=INK)
    right.barh(list(shares), list(shares.values()), color=CYCLE[0], height=0.6)
    for name, value in shares.items():
        right.text(value + 0.015, name, f"{value:.1%}", va="center", fontsize=9.5, color=INK)
    right.set_xlim(0, 1.15)
    right.set_xticks(np.linspace(0, 1, 5))
    right.xaxis.set_major_formatter(PercentFormatter(1))
    right.invert_yaxis()
    tidy(right, xlabel="share of the variance of the log change per block", integer=False)
    right.set_title("what the change depends on", loc="left", fontsize=10, color=INK)
    title(
        figure,
        f"Across prompts: the most restless generation changes {every.max() / every.min():.2f} "
        "times as much as the calmest",
        "Every generation has its own seed. Prompt: its mean over configurations, so the seed "
        "where it ran once.\nRest: seeds, and prompts that act otherwise in another configuration",
    )
    return figure


def forecast_reach(errors: dict[int, tuple[np.ndarray, np.ndarray]], num_steps: int) -> Figure:
    """Error of reuse and of the least-squares forecast over the lag; medians and middle halves.

    Args:
        errors: By lag: reuse and forecast, each (G, T).
        num_steps: S of these generations.
    """
    figure = Figure(figsize=(7, 4.4), layout="constrained")
    axes = figure.subplots()
    lags = list(errors)
    for index, (name, marker) in enumerate((("reuse", "s"), ("forecast", "o"))):
        values = np.array([np.quantile(errors[lag][index], [0.25, 0.5, 0.75]) for lag in lags])
        axes.fill_between(
            lags, values[:, 0], values[:, 2], color=CYCLE[1 - index], alpha=0.15, lw=0
        )
        axes.plot(lags, values[:, 1], marker=marker, color=CYCLE[1 - index], lw=2, label=name)
    axes.set_yscale("log")
    tidy(axes, xlabel="lag (steps)", ylabel="squared error / ||r[s]||²", grid=True)
    legend(axes)
    first = lags[0]
    ratio = np.median(errors[first][0]) / np.median(errors[first][1])
    finding = f"cuts the error {ratio:.1f}-fold" if ratio >= 1.05 else "gains nothing"
    title(
        figure,
        f"A forecast over {first} step {finding}",
        f"The model's output at {num_steps} steps, taken from s - lag and s - 2 lag; "
        "one least-squares coefficient per step\n"
        "for all generations. Line: median, band: middle half",
    )
    return figure


def time_bars(shares: dict[str, np.ndarray]) -> Figure:
    """Share of text encoder, denoising and VAE in each configuration's time, (3,) each."""
    figure = Figure(figsize=(9, 1.7 + 0.5 * len(shares)), layout="constrained")
    axes = figure.subplots()
    for row, values in enumerate(shares.values()):
        start = 0.0
        for value, colour in zip(values, (CYCLE[4], CYCLE[0], CYCLE[2]), strict=True):
            axes.barh(row, value, left=start, color=colour, height=0.62)
            if value >= 0.06:
                shade = INK if colour == CYCLE[4] else "white"
                middle = start + value / 2
                axes.text(
                    middle, row, f"{value:.1%}", ha="center", va="center", fontsize=9, color=shade
                )
            start += value
    axes.set_yticks(range(len(shares)), list(shares))
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.invert_yaxis()
    tidy(axes, integer=False)
    mean = np.mean(list(shares.values()), axis=0)
    parts = zip(("text encoder", "DiT (denoising)", "VAE decoder"), mean, strict=True)
    patches = [
        Patch(color=colour, label=f"{name}, {value:.1%} on average")
        for colour, (name, value) in zip((CYCLE[4], CYCLE[0], CYCLE[2]), parts, strict=True)
    ]
    figure.legend(handles=patches, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    title(figure, f"Where the time goes: {mean[1]:.0%} into the DiT", "Uncached generation")
    return figure
