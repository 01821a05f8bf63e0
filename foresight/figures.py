"""Figures of a comparison, drawn so that one SVG reads well on a light and on a dark page."""

import io
import itertools
import re
from typing import TYPE_CHECKING

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, MultipleLocator

from foresight.curves import (
    CONFIGURATION_KEYS,
    SPEEDUPS,
    at_equal_speed,
    learned_method,
    speed_quality_curve,
)
from foresight.plan import ACTION_NAMES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

METRIC_LABELS = {"psnr": "PSNR (dB)", "ssim": "SSIM", "vmaf": "VMAF"}
INK, FAINT = "#1f2328", "#c9d1d9"
# Okabe and Ito's colours, told apart by people with any common kind of colour blindness; each
# method has its own marker too. Custom properties of the page replace them one by one.
LEARNED_COLOUR, LEARNED_MARKER = "#0072b2", "o"
COLOURS = {
    "foresight": ("#d55e00", "s"),
    "static": ("#009e73", "^"),
    "fewer-steps": ("#cc79a7", "D"),
    "random": ("#8c8c8c", "X"),
    "pab": ("#e69f00", "v"),
}
OTHER_COLOURS = (
    ("#56b4e9", "P"),
    ("#b8a400", "<"),
    ("#7a5195", ">"),
    ("#5c4033", "p"),
    ("#332288", "h"),
    ("#aa4466", "d"),
)
ACTION_COLOURS = ("#0b4f7d", "#dbe4ea", "#f0a13a")  # compute, reuse, forecast
# Speed-ups at which means over configurations are drawn.
GRID = [round(1 + 0.05 * n, 2) for n in range(61)]
GLYPHS = dict(zip("os^DXvP<>phd", "●■▲◆✖▼✚◀▶⬟⬢⬧", strict=True))


def method_styles(results: pd.DataFrame) -> dict[str, tuple[str, str]]:
    """Colour and marker of every method of a comparison; the learned one first."""
    learned = learned_method(results)
    methods = sorted(dict.fromkeys(results["method"]), key=lambda name: name != learned)
    others = iter(OTHER_COLOURS * len(methods))
    styles = {}
    for name in methods:
        if name == learned:
            styles[name] = (LEARNED_COLOUR, LEARNED_MARKER)
        else:
            styles[name] = COLOURS[name] if name in COLOURS else next(others)
    return styles


def speed_quality_figure(results: pd.DataFrame, metric: str, *, legend: bool = False) -> Figure:
    """One line per method: its envelope, and every setting as a faint marker.

    Over several configurations the line is the mean of what is reached in each, with markers where
    the tables read it.

    Args:
        results: Rows of a comparison.
        metric: `psnr`, `ssim` or `vmaf`.
        legend: Name the methods in the figure; the page does so above all of them.
    """
    figure = Figure(figsize=(7, 4) if legend else (3.7, 3.3), layout="constrained")
    axes = figure.subplots()
    learned = learned_method(results)
    single = len(results[CONFIGURATION_KEYS].drop_duplicates()) == 1
    means = at_equal_speed(results, GRID, metric=metric, num_resamples=0)
    top = -np.inf
    for method, (colour, marker) in reversed(method_styles(results).items()):
        size, width = (6.5, 2.6) if method == learned else (5, 1.5)
        style = {"color": colour, "marker": marker, "markeredgewidth": 0}
        line = {"lw": width, "ms": size, "label": method, **style}
        if single:
            curve = speed_quality_curve(results, method, metric)
            axes.plot(curve["speedup"], curve[metric], ls="", ms=size - 1, alpha=0.35, **style)
            best = curve[curve["on_envelope"]]
            axes.plot(best["speedup"], best[metric], **line)
        else:
            curve = means[means["method"] == method].rename(columns={"value": metric})
            marks = np.flatnonzero(curve["speedup"].isin(SPEEDUPS)).tolist()
            axes.plot(curve["speedup"], curve[metric], markevery=marks, **line)
        if method == learned:
            top = curve[metric].max() + 5
    if metric == "psnr" and learned is not None:
        # Settings that reuse next to nothing reach 100 dB and would flatten all of interest.
        axes.set_ylim(top=min(top, axes.get_ylim()[1]))
    axes.set_title(METRIC_LABELS[metric], loc="left", fontsize=12, fontweight="bold", color=INK)
    axes.set_xlabel("measured speed-up of denoising", color=INK)
    axes.xaxis.set_major_formatter("{x:g}x")
    axes.xaxis.set_major_locator(MultipleLocator(0.5))
    _plain(axes)
    axes.grid(color=FAINT, lw=0.6)
    if legend:
        beside = {"loc": "center left", "bbox_to_anchor": (1, 0.5)}
        axes.legend(frameon=False, reverse=True, labelcolor=INK, **beside)
    return figure


def plan_figure(actions: np.ndarray, title: str = "") -> Figure:
    """What was done at every step and block.

    Args:
        actions: Uint8 (S, N), of `plan.COMPUTE`, `REUSE`, `FORECAST`.
        title: Above the table.
    """
    steps, blocks = actions.shape
    figure = Figure(figsize=(6.2, 0.9 + 0.14 * max(blocks, 10)), layout="constrained")
    axes = figure.subplots()
    edges = (np.arange(steps + 1) - 0.5, np.arange(blocks + 1) - 0.5)
    colours = ListedColormap(ACTION_COLOURS)
    axes.pcolormesh(
        *edges, actions.T, cmap=colours, vmin=0, vmax=len(ACTION_NAMES) - 1,
        edgecolors=FAINT, linewidth=0.4,
    )  # fmt: skip
    axes.set_title(title, loc="left", fontsize=11, color=INK)
    axes.set_xlabel("denoising step, from noise to video", color=INK)
    axes.set_ylabel("block", color=INK)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
    axes.invert_yaxis()
    _plain(axes)
    return figure


def plan_svg(actions: np.ndarray) -> str:
    """What `plan_figure` shows, as an `<svg>` for a page, about a tenth of that figure's size.

    Args:
        actions: Uint8 (S, N), of `plan.COMPUTE`, `REUSE`, `FORECAST`.
    """
    steps, blocks = actions.shape
    across, down = 404 / steps, 10 * max(blocks, 10) / blocks  # units of the view box
    cells = [""] * len(ACTION_COLOURS)
    for block, row in enumerate(actions.T.tolist()):
        start = 0
        for action, run in itertools.groupby(row):
            length = len(list(run))
            cells[action] += f"M{start} {block}h{length}v1h-{length}z"
            start += length
    lines = "".join(f"M{step} 0v{blocks}" for step in range(steps + 1))
    lines += "".join(f"M0 {block}h{steps}" for block in range(blocks + 1))
    filled = "".join(
        f'<path fill="var(--c-{colour[1:]}, {colour})" d="{path}"/>'
        for colour, path in zip(ACTION_COLOURS, cells, strict=True)
    )
    bottom = 4 + down * blocks
    ticks = [(40 + across * (t + 0.5), bottom + 13, "middle", t) for t in _ticks(steps)]
    ticks += [(36, 8 + down * (t + 0.5), "end", t) for t in _ticks(blocks)]
    labels = "".join(
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{tick}</text>'
        for x, y, anchor, tick in ticks
    )
    return (
        f'<svg viewBox="0 0 446 {bottom + 34:g}" role="img" fill="var(--ink, {INK})" '
        f'font-size="10"><g transform="translate(40 4) scale({across:.4f} {down:.4f})" '
        f'stroke="var(--faint, {FAINT})" stroke-width="0">{filled}<path fill="none" '
        f'stroke-width=".5" vector-effect="non-scaling-stroke" d="{lines}"/></g>{labels}'
        f'<text x="242" y="{bottom + 29:g}" text-anchor="middle">denoising step, from noise to '
        f'video</text><text transform="translate(12 {4 + down * blocks / 2:g}) rotate(-90)" '
        'text-anchor="middle">block</text></svg>'
    )


def to_svg(figure: Figure, salt: str) -> str:
    """The figure as an `<svg>` to put into a page, with the page's fonts and colours.

    Args:
        figure: Drawn with this module's colours, each of which becomes a custom property of the
            page (`--ink`, `--faint`, `--c-0072b2`, ...) with the colour itself as fallback.
        salt: Differs between the figures of one page, so that their ids do.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<(metadata|style)\b.*?</\1>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg)
    svg = re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', r'<svg \1 role="img">', svg, count=1)
    svg = re.sub(r"font(-family)?: ([^;\"]*?)'[^;\"]*", _page_font, svg)
    svg = svg.replace(INK, f"var(--ink, {INK})").replace(FAINT, f"var(--faint, {FAINT})")
    svg = re.sub(r"#([0-9a-f]{6})(?=[;\"])", r"var(--c-\1, #\1)", svg)
    return re.sub(r"\s+", " ", svg)


def _page_font(match: re.Match) -> str:
    """A style's font with the page's family in place of matplotlib's."""
    return f"font: {match[2]}var(--font)" if match[1] is None else "font-family: var(--font)"


def _ticks(count: int) -> list[int]:
    """Round numbers among the first `count` from 0 on."""
    ticks = MaxNLocator(9, integer=True).tick_values(0, count - 1)
    return [int(tick) for tick in ticks if 0 <= tick < count]


def _plain(axes: "Axes") -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(colors=INK, length=0, labelsize=9)
    axes.set_axisbelow(True)
