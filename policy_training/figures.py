"""Figures for TensorBoard: how good the predictions on held-out prompts are."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy.stats import spearmanr
from sklearn.calibration import calibration_curve
from sklearn.metrics import average_precision_score, precision_recall_curve


def _figure() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(4.5, 4), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots()


def calibration(safe: np.ndarray, probability: np.ndarray) -> Figure:
    """Share of queries that were safe against the predicted probability; both (Q,)."""
    figure, axes = _figure()
    observed, predicted = calibration_curve(safe, probability, n_bins=10, strategy="quantile")
    axes.plot([0, 1], [0, 1], color="0.7", linewidth=1)
    axes.plot(predicted, observed, marker="o")
    axes.set(
        title="Calibration on held-out prompts",
        xlabel="predicted probability of safe reuse",
        ylabel="share that was safe",
    )
    return figure


def precision_recall(safe: np.ndarray, probability: np.ndarray) -> Figure:
    """Precision against recall of "safe to reuse"; both (Q,)."""
    figure, axes = _figure()
    precision, recall, _ = precision_recall_curve(safe, probability)
    axes.plot(recall, precision)
    axes.axhline(float(np.mean(safe)), color="0.7", linewidth=1)
    area = average_precision_score(safe, probability)
    axes.set(
        title=f"Safe to reuse: average precision {area:.3f}",
        xlabel="recall",
        ylabel="precision",
        ylim=(0, 1.02),
    )
    return figure


def damage(measured: np.ndarray, predicted: np.ndarray) -> Figure:
    """Predicted against measured log error of roll-outs; both (R,)."""
    figure, axes = _figure()
    measured, predicted = measured / np.log(10), predicted / np.log(10)
    ends = [min(measured.min(), predicted.min()), max(measured.max(), predicted.max())]
    axes.plot(ends, ends, color="0.7", linewidth=1)
    axes.scatter(measured, predicted, s=12)
    axes.set(
        title=f"Damage of roll-outs: Spearman {spearmanr(measured, predicted).statistic:.3f}",
        xlabel="measured log10 error of the final latents",
        ylabel="predicted",
    )
    return figure
