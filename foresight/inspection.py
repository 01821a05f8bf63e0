"""`foresight inspect`: what a trace set or a trained policy knows, as figures."""

import dataclasses
import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from foresight import inspection_figures as draw
from foresight.config import GenerationConfig, UserError
from foresight.plotting import rows_by_kind
from foresight.traces import TraceSet, write_atomically

LONGEST_LAG = 8
TINY = 1e-8  # relative change that float32 Gram matrices cannot tell from none


def inspect_path(path: Path, output: Path) -> list[Path]:
    """Draw a trace set or a policy folder.

    Args:
        path: Trace set, or folder of a trained policy.
        output: Folder for the PNG files; made if needed, nothing else in it is touched.

    Returns:
        The files, in reading order.

    Raises:
        UserError: If `path` is neither, or damaged, or `output` is a file. Nothing is written then.
    """
    if output.exists() and not output.is_dir():
        raise UserError(f"--output {output} is a file; give a folder")
    if (path / "trace_set.json").exists():
        figures = _trace_figures(path)
    elif _is_policy(path):
        from foresight.inspection_policy import policy_figures
        from foresight.policies.learned import LearnedPolicy

        figures = policy_figures(LearnedPolicy.from_pretrained(path))
    else:
        raise UserError(
            f"{path} is neither a trace set nor a trained policy; "
            "make one with `foresight profile` or `train-policy`"
        )
    pages = {output / f"{name}.png": _to_png(figure) for name, figure in figures.items()}
    output.mkdir(parents=True, exist_ok=True)
    for file, content in pages.items():
        write_atomically(file, content)
    return list(pages)


def change(gram: np.ndarray) -> np.ndarray:
    """Relative change from the step before, from Gram matrices: (..., S, S) -> (..., S - 1).

    `||r[s] - r[s-1]||^2 / ||r[s]||^2` for s from 1.
    """
    own = np.diagonal(gram, axis1=-2, axis2=-1)
    across = np.diagonal(gram, offset=1, axis1=-2, axis2=-1)
    distance = own[..., 1:] + own[..., :-1] - 2 * across
    return np.maximum(distance / np.maximum(own[..., 1:], TINY), TINY)


def variance_shares(
    changes: list[np.ndarray], configs: list[Any], prompts: list[str]
) -> dict[str, float]:
    """What the log change of blocks depends on: shares of its variance, which sum to 1.

    Sequential: the mean of every (step, block), then how each configuration deviates from it, then
    how each prompt deviates from that. Step counts are brought to the smallest by interpolation.

    Args:
        changes: (N, S - 1) of each generation.
        configs: Configuration of each, hashable.
        prompts: Prompt of each.

    Returns:
        `step and block`, `configuration`, `prompt`, `rest` (the seed, and prompts that act
        otherwise in another configuration).
    """
    places = np.linspace(0, 1, min(each.shape[1] for each in changes))
    values = np.stack([_resample(np.log(each), places) for each in changes])
    left = values - values.mean()
    total = max(np.square(left).sum(), TINY)
    shares = {}
    for name, groups in (
        ("step and block", [0] * len(values)),
        ("configuration", configs),
        ("prompt", prompts),
    ):
        before = np.square(left).sum()
        for group in set(groups):
            members = [index for index, each in enumerate(groups) if each == group]
            left[members] -= left[members].mean(axis=0)
        shares[name] = float((before - np.square(left).sum()) / total)
    return {**shares, "rest": float(np.square(left).sum() / total)}


def lag_errors(gram: np.ndarray, lag: int) -> tuple[np.ndarray, np.ndarray]:
    """Error of taking `r[s]` from s - lag, and of forecasting it from s - lag and s - 2 lag.

    The forecast `r[a] + beta * (r[a] - r[p])` has one least-squares beta a step, shared by all
    generations.

    Args:
        gram: (G, S, S).
        lag: Steps; S > 2 lag.

    Returns:
        Reuse and forecast, each (G, S - 2 lag), squared and relative to `||r[s]||^2`.
    """
    target = np.arange(2 * lag, gram.shape[-1])
    latest, previous = target - lag, target - 2 * lag

    def inner(i: np.ndarray, j: np.ndarray) -> np.ndarray:
        return gram[:, i, j] / np.maximum(gram[:, target, target], TINY)

    moved = inner(target, target) + inner(latest, latest) - 2 * inner(target, latest)
    slope = inner(latest, latest) + inner(previous, previous) - 2 * inner(latest, previous)
    along = (
        inner(target, latest)
        - inner(target, previous)
        - inner(latest, latest)
        + inner(latest, previous)
    )
    beta = along.sum(axis=0) / np.maximum(slope.sum(axis=0), TINY)
    forecast = moved - 2 * beta * along + beta**2 * slope
    return np.maximum(moved, TINY), np.maximum(forecast, TINY)


def time_shares(traces: list[dict[str, Any]]) -> np.ndarray:
    """Share of text encoder, denoising and VAE decoder in the time of these generations: (3,)."""
    keys = ("text_seconds", "denoise_seconds", "vae_seconds")
    seconds = np.array([[trace[key] for key in keys] for trace in traces]).sum(axis=0)
    return seconds / seconds.sum()


def _trace_figures(path: Path) -> dict[str, Figure]:
    found = TraceSet.open(path)
    traces = found.traces
    kinds = json.loads(traces[0]["model"])["block_kinds"]
    if min(trace["num_inference_steps"] for trace in traces) < 3:
        raise UserError(f"{path} has generations of fewer than 3 steps; there is no change to draw")
    configs = [_config(trace) for trace in traces]
    changes = [change(trace["gram"]) for trace in traces]
    stacks = [trace["group_gram"][trace["group_names"].index("output")] for trace in traces]
    curves, totals = {}, {}
    for config in dict.fromkeys(configs):
        members = [index for index, each in enumerate(configs) if each == config]
        moved = np.stack([change(stacks[index]) for index in members])
        curves[str(config)] = (traces[members[0]]["sigmas"], moved)
        totals |= dict(zip(members, moved.sum(axis=1) / moved.sum(axis=1).mean(), strict=True))
    categories: dict[str, list[float]] = {}
    for index, trace in enumerate(traces):
        categories.setdefault(trace["category"] or "no category", []).append(totals[index])
    # Steps compare only within one step count: the most frequent.
    steps = Counter(len(trace["sigmas"]) for trace in traces).most_common(1)[0][0]
    alike = [index for index, trace in enumerate(traces) if len(trace["sigmas"]) == steps]
    stack = np.stack([stacks[index] for index in alike])
    lags = range(1, min(LONGEST_LAG, (steps - 1) // 2) + 1)
    seconds = {
        str(each): [t for t, c in zip(traces, configs, strict=True) if c == each]
        for each in configs
    }
    shares = variance_shares(changes, configs, [trace["prompt"] for trace in traces])
    return {
        "1-blocks": draw.block_changes(
            np.mean([changes[index] for index in alike], axis=0),
            rows_by_kind(kinds),
            len(alike),
        ),
        "2-configurations": draw.configuration_curves(curves),
        "3-prompts": draw.prompt_spread(categories, shares),
        "4-forecast": draw.forecast_reach({lag: lag_errors(stack, lag) for lag in lags}, steps),
        "5-time": draw.time_bars({name: time_shares(rows) for name, rows in seconds.items()}),
    }


def _config(trace: dict[str, Any]) -> GenerationConfig:
    names = [field.name for field in dataclasses.fields(GenerationConfig)]
    return GenerationConfig(**{name: trace[name] for name in names})


def _resample(rows: np.ndarray, places: np.ndarray) -> np.ndarray:
    own = np.linspace(0, 1, rows.shape[1])
    return np.stack([np.interp(places, own, row) for row in rows])


def _is_policy(path: Path) -> bool:
    try:
        return "foresight" in json.loads((path / "config.json").read_text("utf-8"))
    except (OSError, ValueError, TypeError):
        return False


def _to_png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
    return buffer.getvalue()
