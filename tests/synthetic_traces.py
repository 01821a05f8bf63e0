"""Trace sets of made-up residuals, small enough to train on in seconds."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from foresight.plan import COMPUTE, Plan
from foresight.policies.reaction import Reaction
from foresight.rollout import sample_plan
from foresight.solver import Solver, euler_solver
from foresight.traces import TraceSet

NUM_BLOCKS = 3
NUM_STEPS = 10
PROMPT_WIDTH = 6
MODEL = {
    "id": "made-up",
    "transformer": "MadeUpTransformer",
    "num_blocks": NUM_BLOCKS,
    "block_names": [f"blocks.{i}" for i in range(NUM_BLOCKS)],
    "block_kinds": ["spatial", "temporal", "spatial"],
    "width": 8,
    "weights_hash": "0123456789abcdef",
}


def solver(sigmas: np.ndarray) -> Solver:
    """Flow matching: each step adds to the latents, and nothing of the first is lost."""
    return Solver(euler_solver(sigmas).response, np.ones(len(sigmas)))


def residuals(rng: np.random.Generator, restless: float) -> np.ndarray:
    """Residual vectors (N, S, d) that drift along a line and wander, by block and prompt."""
    start, drift = rng.normal(size=(2, NUM_BLOCKS, 1, 16))
    time = np.linspace(0, 1, NUM_STEPS)[None, :, None]
    steps = rng.normal(size=(NUM_BLOCKS, NUM_STEPS, 16)) * 0.02
    pace = restless * (1 + np.arange(NUM_BLOCKS))[:, None, None]
    return start + pace * (drift * time + steps.cumsum(axis=1))


def trace(number: int, prompt: str, rng: np.random.Generator) -> dict[str, Any]:
    """One generation, with the columns of a trace set."""
    embedding = np.random.default_rng(list(prompt.encode())).normal(size=PROMPT_WIDTH)
    vectors = residuals(rng, restless=0.5 * np.exp(0.5 * embedding[0]))
    stack = vectors.sum(axis=0)
    sigmas = np.linspace(0.99, 0.1, NUM_STEPS)
    return {
        "generation_id": f"{number:05d}",
        "model": json.dumps(MODEL),
        "prompt": prompt,
        "category": "",
        "prompt_embedding": embedding,
        "seed": number,
        "height": 32,
        "width": 32,
        "num_frames": 4,
        "num_inference_steps": NUM_STEPS,
        "guidance_scale": 4.0,
        "scheduler": "MadeUpScheduler",
        "timesteps": np.linspace(999, 0, NUM_STEPS),
        "sigmas": sigmas,
        "response": solver(sigmas).response,
        "decay": solver(sigmas).decay,
        "gram": np.einsum("bid,bjd->bij", vectors, vectors) / 32,
        "group_names": ["stack", "output"],
        "group_gram": np.repeat((stack @ stack.T)[None] / 64, 2, axis=0),
        "output_norm": np.ones((NUM_BLOCKS, NUM_STEPS)),
        "block_seconds": np.full(NUM_BLOCKS, 0.01),
        "overhead_seconds": 0.002,
        "skip_seconds": 0.001,
        "text_seconds": 0.1,
        "denoise_seconds": 0.4,
        "vae_seconds": 0.1,
        "profile_seconds": 9.0,
    }


def reaction(sigmas: np.ndarray, stronger: float = 1.0) -> Reaction:
    """How the made-up model answers latents that are off: curves over their level.

    Args:
        sigmas: (S,).
        stronger: By how much more than usual.
    """
    level = np.log((1 - sigmas) / sigmas) / 2
    gain = stronger * np.exp(0.2 - 0.5 * level + 0.1 * level**2)
    share = 0.98 * np.tanh(0.3 + 0.2 * level)
    return Reaction(gain * share, gain * np.sqrt(1 - share**2))


def run(
    outputs: np.ndarray,
    sigmas: np.ndarray,
    plan: Plan,
    answer: Reaction,
    lasting: float | np.ndarray = 1.0,
) -> tuple[np.ndarray, np.ndarray]:
    """A plan under flow matching, by vectors of two halves, and of what is each step's own.

    Args:
        outputs: (S, d) uncached.
        sigmas: (S,).
        plan: At the output.
        answer: Of the model.
        lasting: Share of the spread, as an amplitude, that is in the halves; or of each step, (S,).

    Returns:
        What the final latents are off by, and per step (S, 3) how far latents and the prediction
        were off: energy, inner product, energy; zeros where nothing was computed.
    """
    steps, width = outputs.shape
    outputs = np.pad(np.concatenate([outputs, outputs], axis=1) / 2**0.5, ((0, 0), (0, steps)))
    halves, share = np.repeat([1, -1, 0], [width, width, steps]), np.broadcast_to(lasting, steps)
    off, measured, done = np.zeros(2 * width + steps), np.zeros((steps, 3)), []
    for step, size in enumerate(np.diff(np.append(sigmas, 0))):
        if plan.actions[step, 0] == COMPUTE:
            kept, fresh = answer.spread[step] * np.array(
                [share[step], (1 - share[step] ** 2) ** 0.5]
            )
            missed = (answer.coherent[step] + kept * halves) * off
            missed[2 * width + step] += fresh * np.linalg.norm(off)
            measured[step] = off @ off, off @ missed, missed @ missed
            done.insert(0, outputs[step] + missed)
        weighted = zip(plan.weights[step].tolist(), done, strict=False)
        off = off + size * (sum(weight * each for weight, each in weighted) - outputs[step])
    return off, measured


def outputs_of(gram: np.ndarray) -> np.ndarray:
    """Vectors with these inner products, (S, S)."""
    values, axes = np.linalg.eigh(gram)
    return axes * np.sqrt(values.clip(0))


def rollout(
    row: dict[str, Any], plan: Plan, answer: Reaction | None = None, lasting: float = 1.0
) -> dict[str, Any]:
    """A plan that was run on a generation."""
    sigmas = row["sigmas"]
    answer = answer or reaction(sigmas)
    off, measured = run(outputs_of(row["group_gram"][1]), sigmas, plan, answer, lasting)
    return {
        "generation_id": row["generation_id"],
        "prompt": row["prompt"],
        "kind": "stack",
        "plan": plan.actions,
        "coefficients": plan.coefficients,
        "weights": plan.weights,
        "at_output": True,
        "compute_fraction": (plan.actions == COMPUTE).mean(),
        "final_error": off @ off,
        "psnr": 30.0,
        "reaction": measured,
    }


def write_trace_set(folder: Path, *, prompts: int = 6, seeds: int = 1, **changes: Any) -> Path:
    """Write a trace set of `prompts` times `seeds` generations with two roll-outs each.

    `changes` are columns that all traces have instead, after their roll-outs.
    """
    settings = {
        "model": MODEL,
        "prompts": [f"prompt {i}" for i in range(prompts)],
        "configs": [{}],
        "num_generations": prompts * seeds,
        "sketch_width": 16,
    }
    traces = TraceSet.create(folder, settings)
    for number in range(prompts * seeds):
        rng = np.random.default_rng(number)
        row = trace(number, f"prompt {number % prompts}", rng)
        known = row, NUM_BLOCKS, solver(row["sigmas"])
        plans = [sample_plan("stack", rng, *known) for _ in range(2)]
        traces.add(number, row | changes, [rollout(row, plan) for plan in plans])
    return folder
