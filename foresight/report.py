"""The report of a comparison: one HTML page that needs no network and no explanation."""

import base64
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import fmean
from types import MappingProxyType
from typing import Any

import jinja2
import pandas as pd

from foresight import figures
from foresight.config import GenerationConfig, UserError
from foresight.curves import (
    CONFIGURATION_KEYS,
    SPEEDUPS,
    VIDEO_KEYS,
    at_equal_speed,
    learned_method,
)
from foresight.showcase import (
    HEADLINE_SPEEDUP,
    HEURISTIC,
    SMALL_SHORT_SIDE,
    STOPS,
    read_showcases,
)

METRICS = ("psnr", "ssim", "vmaf")
DECIMALS = {"psnr": 1, "ssim": 3, "vmaf": 1}
LABELS = {
    "foresight": "Foresight heuristic",
    "static": "Static cadence",
    "random": "Random plan",
    "fewer-steps": "Fewer steps",
    "none": "No reuse",
    "pab": "PAB",
    "fbcache": "First Block Cache",
    "magcache": "MagCache",
    "taylorseer": "TaylorSeer",
    "fastercache": "FasterCache",
    "cache-dit": "cache-dit (DBCache)",
    "teacache": "TeaCache",
}
MEANINGS = {
    "foresight": "watches each block while it generates and reuses what has changed less than a "
    "threshold, as the Foresight paper has it",
    "static": "recomputes every block at a fixed cadence after a warm-up",
    "random": "after a warm-up, reuses each block at each step with a fixed probability",
    "fewer-steps": "takes fewer denoising steps and computes every block in each; with the "
    "pipeline's own solver and with a second-order one",
    "none": "computes everything",
    "pab": "reuses each attention's output for a fixed number of steps, by its kind (diffusers)",
    "fbcache": "reuses all blocks but the first while the first one's residual hardly changes "
    "(diffusers)",
    "magcache": "reuses the whole stack as long as the magnitudes of its residuals, from one "
    "calibration run, allow (diffusers)",
    "taylorseer": "forecasts outputs between computed steps by a Taylor polynomial (diffusers)",
    "fastercache": "estimates the unconditional branch from the conditional one, and attentions "
    "from their last two outputs (diffusers)",
    "cache-dit": "reuses or forecasts the middle blocks while the first ones' residual hardly "
    "changes (package cache-dit)",
    "teacache": "reuses the whole stack until the accumulated change of the time-modulated input "
    "reaches a threshold",
}


def write_report(folder: str | Path) -> Path:
    """Write `report.html`, and `speed-quality.png`, into the folder of a comparison.

    Args:
        folder: What `foresight.evaluation.compare` wrote.

    Returns:
        The page's path.

    Raises:
        UserError: If the folder holds no readable results, or clips of an older version.
    """
    folder = Path(folder)
    try:
        results = pd.read_parquet(folder / "results.parquet")
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} holds no readable results.parquet; compare first") from error
    path = folder / "setup.json"
    setup = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    path = folder / "report.html"
    figure = figures.speed_quality_figure(results, "psnr", legend=True)
    figure.savefig(folder / "speed-quality.png", dpi=160)
    page = render(
        results,
        read_showcases(folder / "showcase"),
        setup.get("model", {}),
        not_applicable=setup.get("not_applicable", {}),
    )
    path.write_text(page, "utf-8")
    return path


def render(
    results: pd.DataFrame,
    showcases: list[dict],
    model: dict[str, Any],
    *,
    not_applicable: Mapping[str, str] = MappingProxyType({}),
) -> str:
    """The page.

    Args:
        results: Rows of a comparison.
        showcases: What `foresight.showcase.read_showcases` returns.
        model: The fingerprint of the pipeline's transformer.
        not_applicable: Methods that were asked for and left out, with the reason.

    Returns:
        HTML that refers to nothing outside itself.
    """
    learned = learned_method(results)
    showcases = [showcase for showcase in showcases if _shown(showcase["clips"], learned)]
    metrics = [name for name in METRICS if results[name].notna().any()]
    styles = figures.method_styles(results)
    tables = {name: at_equal_speed(results, SPEEDUPS, metric=name) for name in metrics}
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    drawn = {name: figures.speed_quality_figure(results, name) for name in metrics}
    return environment.get_template("report.html.j2").render(
        headline=headline(tables.get("psnr"), learned),
        num_videos=len(results[VIDEO_KEYS].drop_duplicates()),
        legend=[
            {"label": label(m, learned), "colour": colour, "glyph": figures.GLYPHS[marker]}
            for m, (colour, marker) in styles.items()
        ],
        meanings=[(label(m, learned), MEANINGS[m]) for m in styles if m in MEANINGS],
        curves=[(name, figures.to_svg(figure, name)) for name, figure in drawn.items()],
        tables=[_table(name, tables[name], list(styles), learned) for name in metrics],
        stops=[f"{stop:g}" for stop in STOPS],
        headline_stop=STOPS.index(HEADLINE_SPEEDUP),
        reached=_reached(showcases, learned),
        showcases=[_showcase(showcase, learned) for showcase in showcases],
        plans=_plans(showcases, learned),
        facts=_facts(results, model),
        prompts=list(dict.fromkeys(results["prompt"])),
        learned=learned,
        left_out=[(label(m, learned), reason) for m, reason in not_applicable.items()],
        interval_videos=len(results[VIDEO_KEYS].drop_duplicates()) > 1,
        several_configurations=len(results[CONFIGURATION_KEYS].drop_duplicates()) > 1,
    )


def label(method: str, learned: str | None) -> str:
    """What the page calls a method."""
    return "Learned policy" if method == learned else LABELS.get(method, method)


def headline(table: pd.DataFrame | None, learned: str | None) -> dict[str, Any] | None:
    """The measured gain over the heuristic at 2x, or at the nearest speed-up both reach.

    Args:
        table: PSNR of `at_equal_speed`.
        learned: The learned method's name.

    Returns:
        `speedup`, `learned`, `heuristic`, `gain`, `gain_low`, `gain_high` (dB), or None where the
        two cannot be compared.
    """
    if table is None or learned is None:
        return None
    rivals = table[(table["method"] == HEURISTIC) & table["gain"].notna()]
    if rivals.empty:
        return None
    row = rivals.loc[(rivals["speedup"] - HEADLINE_SPEEDUP).abs().idxmin()]
    gains = {name: float(row[name]) for name in ("speedup", "gain", "gain_low", "gain_high")}
    heuristic = float(row["value"])
    known = not math.isnan(gains["gain_low"])
    return {**gains, "heuristic": heuristic, "learned": heuristic + gains["gain"], "known": known}


def _table(
    metric: str, table: pd.DataFrame, methods: list[str], learned: str | None
) -> dict[str, Any]:
    """Cells of one metric's table; the best of each column is marked."""
    best = table.groupby("speedup")["value"].transform("max")
    table = table.assign(best=table["value"] == best).set_index(["method", "speedup"])
    rows = []
    for method in methods:
        cells = [_cell(table.loc[(method, speedup)], DECIMALS[metric]) for speedup in SPEEDUPS]
        rows.append({"label": label(method, learned), "cells": cells, "own": method == learned})
    name = figures.METRIC_LABELS[metric]
    return {"metric": metric, "name": name, "speedups": SPEEDUPS, "rows": rows}


def _cell(row: pd.Series, decimals: int) -> dict[str, Any] | None:
    """A value, its interval and its distance to the learned policy; None outside the sweep."""
    if math.isnan(row["value"]):
        return None
    cell = {"value": f"{row['value']:.{decimals}f}", "best": bool(row["best"])}
    if not math.isnan(row["low"]):
        cell["interval"] = f"{row['low']:.{decimals}f} to {row['high']:.{decimals}f}"
    if not math.isnan(row["gain"]):
        numbers = [f"{-row[name]:+.{decimals}f}" for name in ("gain", "gain_high", "gain_low")]
        known = not math.isnan(row["gain_low"])
        text = f"{numbers[0]} ({numbers[1]} to {numbers[2]})" if known else numbers[0]
        cell["gain"] = text.replace("-", "\N{MINUS SIGN}")
    return cell


def _choices(clips: list[dict]) -> list[dict]:
    """A method's clips with the stops of the dial that show each; the first is shown at first."""
    clips = sorted(clips, key=lambda clip: HEADLINE_SPEEDUP not in clip["stops"])
    return [{**clip, "stops": " ".join(f"{stop:g}" for stop in clip["stops"])} for clip in clips]


def _reached(showcases: list[dict], learned: str | None) -> list[dict[str, Any]]:
    """What each method reaches at each stop of the dial: means over the showcases' videos."""
    reached = []
    for method in _shown((m for showcase in showcases for m in showcase["clips"]), learned):
        clips = [clip for showcase in showcases for clip in showcase["clips"].get(method, [])]
        means: list[dict] = []
        for stop in STOPS:
            at = [clip for clip in clips if stop in clip["stops"]]
            means.append({n: fmean(clip[n] for clip in at) for n in ("speedup", "psnr")})
            means[-1]["stops"] = [stop]
        reached.append({"label": label(method, learned), "choices": _choices(means)})
    return reached


def _showcase(showcase: dict, learned: str | None) -> dict[str, Any]:
    """One prompt's row of clips, embedded: uncached, then each method and its difference."""
    folder = showcase["folder"]
    uncached = {"stops": STOPS, "note": "1x, the reference", "video": _embed(folder, "uncached")}
    panels = [{"title": "Uncached", "choices": _choices([uncached])}]
    for method in _shown(showcase["clips"], learned):
        name, choices = label(method, learned), _choices(showcase["clips"][method])
        videos = [{**c, "note": _measured(c), "video": _embed(folder, c["name"])} for c in choices]
        errors = [
            {**c, "note": name, "video": _embed(folder, f"{c['name']}.difference")} for c in choices
        ]
        panels.append({"title": name, "choices": videos})
        panels.append({"title": f"Error, times {showcase['amplification']}", "choices": errors})
    config = GenerationConfig(**showcase["config"])
    enlarged = min(config.height, config.width) < SMALL_SHORT_SIDE
    return {**showcase, "config": str(config), "panels": panels, "enlarged": enlarged}


def _measured(clip: dict) -> str:
    return f"{clip['speedup']:.2f}x, {clip['psnr']:.1f} dB"


def _shown(held: Iterable[str], learned: str | None) -> list[str]:
    """The methods shown side by side, of those that a showcase holds: heuristic, then learned."""
    return sorted({HEURISTIC, learned} & set(held), key=lambda method: method == learned)


def _embed(folder: Path, name: str) -> str:
    data = base64.b64encode((folder / f"{name}.mp4").read_bytes()).decode("ascii")
    return f"data:video/mp4;base64,{data}"


def _plans(showcases: list[dict], learned: str | None) -> list[dict[str, Any]]:
    """Heat maps of the first showcase's plans: the heuristic's and the learned ones."""
    plans = []
    for showcase in showcases[:1]:
        for method in _shown(showcase["clips"], learned):
            choices = [
                {
                    **clip,
                    "title": f"{label(method, learned)} at {_measured(clip)}",
                    "note": f"{clip['compute_fraction']:.0%} of block calls computed",
                    "svg": figures.plan_svg(showcase["plans"][clip["name"]]),
                }
                for clip in _choices(showcase["clips"][method])
            ]
            plans.append({"prompt": showcase["prompt"], "choices": choices})
    return plans


def _facts(results: pd.DataFrame, model: dict[str, Any]) -> list[tuple[str, str]]:
    """How it was measured, as term and description."""
    videos = results[VIDEO_KEYS].drop_duplicates()
    names = list(GenerationConfig.__dataclass_fields__)
    configs = videos[names].drop_duplicates().to_dict("records")
    categories = [c for c in dict.fromkeys(results.get("category", [])) if c]
    about = f" ({', '.join(categories)})" if categories else ""
    seconds = results.drop_duplicates(VIDEO_KEYS)["baseline_denoise_seconds"].median()
    facts = [
        ("Device", ", ".join(dict.fromkeys(results["device"]))),
        ("Videos", f"{videos['prompt'].nunique()} prompts{about}; {len(videos)} videos in all"),
        ("Configurations", "; ".join(str(GenerationConfig(**config)) for config in configs)),
        ("Seeds", ", ".join(str(seed) for seed in sorted(videos["seed"].unique()))),
        ("Uncached denoising", f"{seconds:.2f} s a video (median)"),
    ]
    if "transformer" in model:
        blocks = f", {model['num_blocks']} blocks" if "num_blocks" in model else ""
        facts.insert(0, ("Model", f"{model.get('id', '')} ({model['transformer']}{blocks})"))
    return facts
