"""Trace sets in memory: read, checked, split by prompt, and stacked into tensors."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.model_selection import GroupShuffleSplit
from torch import Tensor

from foresight.config import GenerationConfig, UserError
from foresight.policies.network import config_features
from foresight.solver import Solver
from foresight.traces import TraceSet

PROMPT_USES = ("prompt", "without prompt", "shuffled prompt")


@dataclass(frozen=True)
class ProfiledGeneration:
    """One profiled generation and the roll-outs executed on it (rows of the trace set)."""

    trace: dict[str, Any]
    rollouts: list[dict[str, Any]]


@dataclass(frozen=True)
class Bucket:
    """Generations with the same number of steps S, as tensors; G of them, E = 1 + N entities."""

    gram: Tensor
    """(G, E, S, S); entity 0 is the model's output, entity 1 + b block b."""
    sigmas: Tensor
    """(G, S) noise level of each step."""
    solvers: list[Solver]
    """Of each generation."""
    guidance_scales: list[float]
    """Of each generation."""
    embedding: Tensor
    """(G, D) prompt embedding, as the chosen use of the prompt has it."""
    features: Tensor
    """(G, C) configuration features."""
    rollouts: list[list[dict[str, Any]]]
    """Roll-outs of each generation."""


def load_generations(dirs: Sequence[Path]) -> list[ProfiledGeneration]:
    """Read and check trace sets.

    Raises:
        UserError: If a trace set is missing or broken, or they are of different models.
    """
    generations: list[ProfiledGeneration] = []
    for folder in dirs:
        traces = TraceSet.open(folder)
        rollouts: dict[str, list[dict[str, Any]]] = {}
        for row in traces.rollouts:
            _check_columns(row, {"weights", "reaction"}, folder)
            rollouts.setdefault(row["generation_id"], []).append(row)
        for trace in traces.traces:
            _check_columns(trace, {"decay"}, folder)
            if generations and not _same_model(trace, generations[0].trace):
                raise UserError(
                    f"{folder} was profiled on another model than {dirs[0]}; "
                    "train one policy per model"
                )
            generations.append(ProfiledGeneration(trace, rollouts.get(trace["generation_id"], [])))
    return generations


def _check_columns(row: dict[str, Any], needed: set[str], folder: Path) -> None:
    missing = sorted(needed - row.keys())
    if missing:
        raise UserError(
            f"{folder} was made by an earlier version (it lacks {', '.join(missing)}); "
            "profile again into a new folder"
        )


def _same_model(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two traces are of the same weights, whatever folder those were loaded from."""
    first, second = fingerprint_of(one), fingerprint_of(other)
    return all(first[key] == second[key] for key in first if key != "id")


def fingerprint_of(trace: dict[str, Any]) -> dict[str, Any]:
    """Fingerprint of the model that a trace was logged on."""
    return json.loads(trace["model"])


def configuration(trace: dict[str, Any]) -> GenerationConfig:
    """Configuration that a trace was generated with."""
    return GenerationConfig(
        height=int(trace["height"]),
        width=int(trace["width"]),
        num_frames=int(trace["num_frames"]),
        num_inference_steps=int(trace["num_inference_steps"]),
        guidance_scale=float(trace["guidance_scale"]),
    )


def split_by_prompt(
    generations: list[ProfiledGeneration], fraction: float, seed: int
) -> tuple[list[ProfiledGeneration], list[ProfiledGeneration]]:
    """Hold `fraction` of the prompts out; all generations of a prompt fall on one side.

    Raises:
        UserError: If there are fewer than two prompts.
    """
    prompts = [generation.trace["prompt"] for generation in generations]
    if len(set(prompts)) < 2:
        raise UserError(
            f"DIR: {len(generations)} generations of {len(set(prompts))} prompt cannot be split "
            "by prompt; profile at least two prompts"
        )
    splitter = GroupShuffleSplit(n_splits=1, test_size=fraction, random_state=seed)
    try:
        train, held_out = next(splitter.split(prompts, groups=prompts))
    except ValueError as error:
        raise UserError(
            f"--validation_fraction {fraction} leaves no prompt on one side of the split; "
            f"there are {len(set(prompts))} prompts"
        ) from error
    return [generations[i] for i in train], [generations[i] for i in held_out]


def _embeddings(generations: list[ProfiledGeneration], use: str, seed: int) -> list[np.ndarray]:
    """Prompt embedding of each generation: its own, zeros, or another prompt's."""
    own = {g.trace["prompt"]: np.asarray(g.trace["prompt_embedding"]) for g in generations}
    names = list(own)
    if use == "without prompt":
        own = {name: np.zeros_like(value) for name, value in own.items()}
    elif use == "shuffled prompt":
        order = np.random.default_rng(seed).permutation(len(names))
        swapped = dict(zip(order, np.roll(order, 1), strict=True))
        own = {name: own[names[swapped[i]]] for i, name in enumerate(names)}
    return [own[generation.trace["prompt"]] for generation in generations]


def _with_output(trace: dict[str, Any]) -> np.ndarray:
    """Gram matrices (1 + N, S, S): of the model's output, then of every block."""
    output = trace["group_gram"][trace["group_names"].index("output")]
    return np.concatenate([output[None], trace["gram"]])


def _solver(trace: dict[str, Any]) -> Solver:
    return Solver(np.asarray(trace["response"]), np.asarray(trace["decay"]))


def make_buckets(
    generations: list[ProfiledGeneration], use: str = "prompt", seed: int = 0
) -> list[Bucket]:
    """Stack generations by their number of steps; `use` is one of `PROMPT_USES`."""
    groups: dict[int, list[tuple[ProfiledGeneration, np.ndarray]]] = {}
    for item in zip(generations, _embeddings(generations, use, seed), strict=True):
        groups.setdefault(len(item[0].trace["sigmas"]), []).append(item)
    buckets = []
    for _, members in sorted(groups.items()):
        traces = [generation.trace for generation, _ in members]
        grams = [_with_output(t) for t in traces]
        buckets.append(
            Bucket(
                gram=torch.from_numpy(np.stack(grams)).float(),
                sigmas=torch.from_numpy(np.stack([t["sigmas"] for t in traces])).float(),
                solvers=[_solver(t) for t in traces],
                guidance_scales=[float(t["guidance_scale"]) for t in traces],
                embedding=torch.from_numpy(np.stack([e for _, e in members])).float(),
                features=torch.tensor([config_features(configuration(t)) for t in traces]),
                rollouts=[generation.rollouts for generation, _ in members],
            )
        )
    return buckets
