"""Trace sets of made-up residuals, small enough to train on in seconds."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from foresight.plan import COMPUTE, Plan
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
    first = rng.normal(size=stack.shape[1])
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
        "first_latents": np.append(stack @ first, first @ first) / 64,
        "output_norm": np.ones((NUM_BLOCKS, NUM_STEPS)),
        "block_seconds": np.full(NUM_BLOCKS, 0.01),
        "overhead_seconds": 0.002,
        "skip_seconds": 0.001,
        "text_seconds": 0.1,
        "denoise_seconds": 0.4,
        "vae_seconds": 0.1,
    }


def final_error(row: dict[str, Any], plan: Plan) -> float:
    """Squared distance of final latents under a plan from the uncached ones, by vectors."""
    steps, first = len(row["sigmas"]), row["first_latents"]
    gram = np.zeros((steps + 1, steps + 1))
    gram[:steps, :steps] = row["group_gram"][1]
    gram[steps], gram[:, steps] = first, first
    values, axes = np.linalg.eigh(gram)
    *outputs, latents = axes * np.sqrt(values.clip(0))  # with these inner products
    sizes, done = np.diff(np.append(row["sigmas"], 0)), []
    wanted = latents + sizes @ np.stack(outputs)
    for step, output in enumerate(outputs):
        if plan.actions[step, 0] == COMPUTE:
            done.insert(0, output)
        *weights, of_latents = plan.weights[step].tolist()
        parts = [weight * each for weight, each in zip(weights, done, strict=False)]
        latents = latents + sizes[step] * (sum(parts) + of_latents * latents)
    return float(np.square(latents - wanted).sum())


def rollout(row: dict[str, Any], plan: Plan, rng: np.random.Generator) -> dict[str, Any]:
    """A roll-out of a model that heals most of what a plan leaves in the latents."""
    skipped = (plan.actions != 0).mean()
    left = final_error(row, plan)
    return {
        "generation_id": row["generation_id"],
        "prompt": row["prompt"],
        "kind": "stack",
        "plan": plan.actions,
        "coefficients": plan.coefficients,
        "weights": plan.weights,
        "at_output": True,
        "compute_fraction": 1 - skipped,
        "final_error": 0.01 * left * rng.uniform(0.8, 1.2),
        "psnr": 30.0,
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
        traces.add(number, row | changes, [rollout(row, plan, rng) for plan in plans])
    return folder
