"""A trained policy as figures: its plans, gains and predicted change for a neutral prompt."""

import logging

import numpy as np
import torch
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from foresight.config import GenerationConfig, UserError
from foresight.figures import ACTION_COLOURS, FAINT, INK, plan_figure
from foresight.plan import ACTION_NAMES, COMPUTE
from foresight.plotting import CYCLE, NOISE, heat_map, legend, rows_by_kind, tidy, title
from foresight.policies.base import Generation
from foresight.policies.learned import LearnedPolicy
from foresight.policies.network import config_features
from foresight.policies.reaction import gains_after
from foresight.solver import euler_solver

PLAN_SPEEDUPS, PLAN_STEPS = (1.5, 2.0, 3.0), (30, 50)
CHANGE_LAGS = (1, 2, 4, 8)
_log = logging.getLogger(__name__)


def policy_figures(policy: LearnedPolicy) -> dict[str, Figure]:
    """Plans at a few budgets, gain per step, and change per block, step and lag; by file name."""
    generations = {steps: neutral_generation(policy, steps) for steps in PLAN_STEPS}
    figures = {}
    for steps, generation in generations.items():
        for speedup in PLAN_SPEEDUPS:
            try:
                plan = policy.at(speedup).begin(generation)
            except UserError as error:
                _log.warning("no plan of %d steps drawn: %s", steps, error)
                continue
            figures[f"1-plan-{steps}-steps-{speedup:g}x"] = plan_page(plan.actions, speedup)
    gains = {
        steps: (each.sigmas, predicted_gain(policy, each)) for steps, each in generations.items()
    }
    figures["2-gain"] = gain_curves(gains)
    first = generations[PLAN_STEPS[0]]
    changes = {lag: predicted_change(policy, first, lag) for lag in CHANGE_LAGS}
    figures["3-change"] = predicted_changes(changes, rows_by_kind(list(first.block_kinds)))
    return figures


def neutral_generation(policy: LearnedPolicy, num_steps: int) -> Generation:
    """The mean prompt and configuration of training.

    Its sigmas are those of the finest schedule in training, resampled to `num_steps`.
    """
    area, aspect, frames, _, guidance = policy.model.config_mean.tolist()
    config = GenerationConfig(
        height=max(1, round(2 ** ((area + aspect) / 2))),
        width=max(1, round(2 ** ((area - aspect) / 2))),
        num_frames=max(1, round(2**frames)),
        num_inference_steps=num_steps,
        guidance_scale=2**guidance,
    )
    known = np.append(policy.model.grid.numpy(), 0.0)
    passed = np.arange(num_steps) / num_steps
    sigmas = np.interp(passed * (len(known) - 1), np.arange(len(known)), known)
    return Generation(
        config=config,
        timesteps=1000 * (1 - passed),
        sigmas=sigmas,
        prompt_embedding=policy.model.prompt_mean.numpy(),
        block_names=tuple(policy.fingerprint["block_names"]),
        block_kinds=tuple(policy.fingerprint["block_kinds"]),
    )


def predicted_gain(policy: LearnedPolicy, generation: Generation) -> np.ndarray:
    """How far an error of the latents at each step reaches the video, as an amplitude: (S,)."""
    reaction = policy.search.reaction(generation)
    return np.sqrt(gains_after(euler_solver(generation.sigmas), reaction)[:-1])


@torch.no_grad()
def predicted_change(policy: LearnedPolicy, generation: Generation, lag: int) -> np.ndarray:
    """Predicted relative change over `lag` steps: (1 + N, S - lag), the model's output first."""
    entities = 1 + generation.num_blocks
    target = np.arange(lag, generation.num_steps)
    places = np.stack([target, target - lag, np.maximum(target - 2 * lag, 0)], axis=1)
    levels = torch.from_numpy(generation.sigmas).float()[np.tile(places, (entities, 1))]
    entity = torch.arange(entities).repeat_interleave(len(target))
    out = policy.model(entity, levels, _context(policy, generation).expand(len(entity), -1))
    return out["log_reuse"].exp().reshape(entities, -1).numpy()


def plan_page(actions: np.ndarray, speedup: float) -> Figure:
    """A plan (S, N) with its budget in the title and a legend."""
    computed = (actions == COMPUTE).mean()
    figure = plan_figure(
        actions, f"{speedup:g}x at {len(actions)} steps: {computed:.0%} of the block calls computed"
    )
    patches = [
        Patch(facecolor=colour, edgecolor=FAINT, label=name)
        for name, colour in zip(ACTION_NAMES, ACTION_COLOURS, strict=True)
    ]
    figure.legend(handles=patches, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure


def gain_curves(gains: dict[int, tuple[np.ndarray, np.ndarray]]) -> Figure:
    """Predicted gain over sigma, by step count: sigmas (S,), gains (S,)."""
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for colour, marker, (steps, (sigmas, gain)) in zip(CYCLE, "osD^", gains.items(), strict=False):
        axes.plot(sigmas, gain, marker=marker, ms=3.5, color=colour, lw=1.8, label=f"{steps} steps")
    axes.set_yscale("log")
    for which in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        which("{x:g}")
    axes.invert_xaxis()
    tidy(axes, xlabel=NOISE, ylabel="gain, as an amplitude", grid=True)
    legend(axes)
    title(
        figure,
        "Where an error hurts",
        "Predicted: from an error of the latents at a step to the final ones",
    )
    return figure


def predicted_changes(changes: dict[int, np.ndarray], rows: dict[str, list[int]]) -> Figure:
    """Predicted change of the output and of every block, a column of heat maps for each lag.

    Args:
        changes: By lag: (1 + N, S - lag), the output first.
        rows: Block indices of each kind.
    """
    bands = {
        "output": [0],
        **{kind: [1 + index for index in members] for kind, members in rows.items()},
    }
    heights = [max(1.5, len(members)) for members in bands.values()]
    figure = Figure(figsize=(12, 2 + 0.22 * sum(heights)), layout="constrained")
    table = figure.subplots(
        len(bands), len(changes), sharex=True, height_ratios=heights, squeeze=False
    )
    norm = LogNorm(min(v.min() for v in changes.values()), max(v.max() for v in changes.values()))
    for column, (lag, values) in enumerate(changes.items()):
        for axes, (kind, members) in zip(table[:, column], bands.items(), strict=True):
            image = heat_map(axes, values[members], norm, first_step=lag)
            tidy(axes, ylabel=kind if column == 0 else "")
            if kind == "output" or column > 0:
                axes.set_yticks([])
        table[0, column].set_title(f"lag {lag}", loc="left", fontsize=10, color=INK)
        table[-1, column].set_xlabel("denoising step", color=INK)
    figure.colorbar(image, ax=table, label="predicted squared error of reuse", shrink=0.9)
    steps = next(iter(changes)) + next(iter(changes.values())).shape[1]
    title(
        figure,
        "Which layer is safe at which step",
        f"Reuse at {steps} steps of what was computed lag steps before; error over the mean "
        "squared output. Dark is safe, bright is not",
    )
    return figure


def _context(policy: LearnedPolicy, generation: Generation) -> torch.Tensor:
    prompt = torch.from_numpy(generation.prompt_embedding).float()
    return policy.model.context(prompt[None], torch.tensor([config_features(generation.config)]))
