"""Trace sets of made-up residuals, small enough to train on in seconds."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from foresight.plan import Plan
from foresight.rollout import sample_plan
from foresight.solver import euler_response
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
        "response": euler_response(sigmas),
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
    }


def rollout(row: dict[str, Any], plan: Plan, rng: np.random.Generator) -> dict[str, Any]:
    """A roll-out whose damage grows with the number of skipped steps."""
    skipped = (plan.actions != 0).mean()
    return {
        "generation_id": row["generation_id"],
        "prompt": row["prompt"],
        "kind": "stack",
        "plan": plan.actions,
        "coefficients": plan.coefficients,
        "corrections": plan.corrections,
        "at_output": True,
        "compute_fraction": 1 - skipped,
        "final_error": 0.01 * skipped**2 * rng.uniform(0.8, 1.2),
        "psnr": 30.0,
    }


def write_trace_set(folder: Path, *, prompts: int = 6, seeds: int = 1) -> Path:
    """Write a trace set of `prompts` times `seeds` generations with two roll-outs each."""
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
        known = row["group_gram"][1], row["sigmas"], NUM_BLOCKS, row["response"]
        plans = [sample_plan("stack", rng, *known) for _ in range(2)]
        traces.add(number, row, [rollout(row, plan, rng) for plan in plans])
    return folder
