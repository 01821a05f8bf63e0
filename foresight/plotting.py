"""How the figures of `foresight inspect` look: colours, heat maps, axes, titles."""

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import offset_copy

from foresight.figures import FAINT, INK

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours, as in the report.
CYCLE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c8c8c")
DASHES = ("-", "--", ":", "-.")
HEAT_MAP = "cividis"
NOTE = "#57606a"
NOISE = "share of noise, from noise to video"
CHANGE = "relative change of the residual"


def rows_by_kind(kinds: list[str]) -> dict[str, list[int]]:
    """Indices of the blocks of each kind, in execution order."""
    rows: dict[str, list[int]] = {}
    for index, kind in enumerate(kinds):
        rows.setdefault(kind.replace("_", " ").removesuffix(" blocks"), []).append(index)
    return rows


def heat_map(axes: "Axes", values: np.ndarray, norm: LogNorm, *, first_step: int) -> Any:
    """Colour `values` (rows, steps from `first_step`), first row on top; returns the mappable."""
    rows, columns = values.shape
    edges = np.arange(columns + 1) + first_step - 0.5, np.arange(rows + 1) - 0.5
    image = axes.pcolormesh(*edges, values, cmap=HEAT_MAP, norm=norm)
    axes.invert_yaxis()
    return image


def tidy(
    axes: "Axes", *, xlabel: str = "", ylabel: str = "", grid: bool = False, integer: bool = True
) -> None:
    """Plain axes with labels; `integer`: whole numbers at the ticks."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(which="both", colors=INK, length=0, labelsize=9)
    axes.set_xlabel(xlabel, color=INK)
    axes.set_ylabel(ylabel, color=INK)
    if grid:
        axes.grid(color=FAINT, lw=0.6)
        axes.set_axisbelow(True)
    if integer:
        axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=xlabel != NOISE))
        if axes.get_yscale() == "linear":
            axes.yaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))


def cycle(count: int) -> list[str]:
    """The first `count` colours, round and round."""
    return [CYCLE[index % len(CYCLE)] for index in range(count)]


def legend(axes: "Axes") -> None:
    """The legend of lines drawn with labels."""
    axes.legend(frameon=False, fontsize=9, labelcolor=INK)


def title(figure: Figure, finding: str, note: str) -> None:
    """What the figure shows, and below, in smaller type, how it was measured."""
    room = "\n" * (1 + note.count("\n"))
    figure.suptitle(finding + room, x=0.01, ha="left", fontsize=13, fontweight="bold", color=INK)
    below = offset_copy(figure.transFigure, figure, y=-24, units="points")
    figure.text(0.01, 1, note, transform=below, va="top", fontsize=9, color=NOTE)
