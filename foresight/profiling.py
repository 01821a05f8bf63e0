"""The profiler: one ordinary generation gives every block's Gram matrix over steps."""

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from foresight.config import GenerationConfig, Prompt, UserError
from foresight.fingerprint import fingerprint
from foresight.pipeline import Generated, generate
from foresight.policies.fixed import OneStepPolicy
from foresight.policies.learned import LearnedPolicy
from foresight.recorder import Tensors, TraceRecorder
from foresight.rollout import KINDS, roll_out, sample_plan
from foresight.session import MODEL
from foresight.sketch import Sketcher
from foresight.traces import TraceSet

POLICY_SPEEDUPS = (1.2, 3.8)  # rolled out in an on-policy round
TIMED_STEPS = 8  # are enough to time blocks


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds of a plain run: per block and step (N,), per step outside the blocks, and per part.

    `skip_seconds` is what a step takes in which the model is not run at all; `denoise_seconds` is
    the time of as many steps as were timed, carried over to all.
    """

    block_seconds: np.ndarray
    overhead_seconds: float
    skip_seconds: float
    text_seconds: float
    denoise_seconds: float
    vae_seconds: float


def measure_timing(pipe: Any, prompt: str, config: GenerationConfig) -> Timing:
    """Time every block of a brief uncached run, after one to warm up. Medians over the steps."""
    brief = dataclasses.replace(
        config, num_inference_steps=min(TIMED_STEPS, config.num_inference_steps)
    )
    generate(pipe, prompt, brief, seed=0)
    plain = generate(pipe, prompt, brief, seed=0)
    count = len(plain.report.block_names)
    times: list[list[float]] = [[] for _ in range(count)]
    mark = 0.0

    def tick(step: int, branch: int, block: int, streams: Tensors, outputs: Tensors) -> None:
        nonlocal mark
        if block == MODEL:
            return
        if outputs[0].device.type != "cpu":
            torch.accelerator.synchronize(outputs[0].device)
        now = time.perf_counter()
        if block > 0:
            times[block].append(now - mark)
        mark = time.perf_counter()

    timed = generate(pipe, prompt, brief, seed=0, tap=tick)
    # The first block starts in the dark; blocks of one kind cost the same.
    times[0] = times[-2 if count > 2 else -1]
    steps = plain.report.actions.shape[0]
    calls = [len(block) / len(timed.report.actions) for block in times]  # in a step
    seconds = np.asarray([np.median(block) for block in times]) * calls
    total = plain.denoise_seconds / steps
    seconds *= min(1.0, 0.98 * total / seconds.sum())
    idle = generate(pipe, prompt, brief, seed=0, policy=OneStepPolicy())
    skipped = max(0.0, (idle.denoise_seconds - total) / max(1, steps - 1))
    return Timing(
        block_seconds=seconds,
        overhead_seconds=total - seconds.sum(),
        skip_seconds=skipped,
        text_seconds=plain.text_seconds,
        denoise_seconds=plain.denoise_seconds
        * (config.num_inference_steps / brief.num_inference_steps),
        vae_seconds=plain.vae_seconds,
    )


def profile(
    pipe: Any,
    prompts: list[Prompt],
    configs: list[GenerationConfig],
    output: str | Path,
    *,
    rollouts: int = 4,
    sketch_width: int = 4093,
    seed: int = 0,
    policy: LearnedPolicy | None = None,
) -> TraceSet:
    """Profile every prompt in every configuration, and roll plans out; continues what is there.

    Args:
        pipe: A diffusers pipeline.
        prompts: What to generate.
        configs: At what resolution, length, steps and guidance.
        output: The trace set's folder.
        rollouts: Plans to try per generation.
        sketch_width: Numbers per sketch.
        seed: Of the first generation; then counted up.
        policy: Where given, its own plans at random speed-ups are rolled out (an on-policy round);
            sampled ones otherwise.

    Raises:
        UserError: If `output` holds traces of another model or other settings.
    """
    jobs = [(prompt, config) for config in configs for prompt in prompts]
    model = fingerprint(pipe)
    settings = {
        "model": model,
        "prompts": [dataclasses.asdict(prompt) for prompt in prompts],
        "configs": [dataclasses.asdict(config) for config in configs],
        "num_generations": len(jobs),
        "rollouts": rollouts,
        "sketch_width": sketch_width,
        "seed": seed,
        "policy": None if policy is None else policy.digest(),
    }
    if policy is not None:
        policy.check(pipe)
    traces, sketcher = TraceSet.create(output, settings), Sketcher(sketch_width)
    missing = [number for number in range(len(jobs)) if not traces.has(number)]
    # First of all, so that a configuration that the model does not take is met before the work.
    timings, spent = {}, {}
    for config in tqdm(dict.fromkeys(jobs[number][1] for number in missing), desc="time blocks"):
        started = time.perf_counter()
        timings[config] = measure_timing(pipe, prompts[0].text, config)
        spent[config] = time.perf_counter() - started  # on its first generation's account
    for number in tqdm(missing, initial=len(jobs) - len(missing), total=len(jobs), desc="profile"):
        prompt, config = jobs[number]
        started = time.perf_counter() - spent.pop(config, 0.0)
        blocks = len(timings[config].block_seconds)
        recorder = TraceRecorder(blocks, sketcher, config.guidance_scale)
        run_seed = seed + number
        plain = generate(pipe, prompt.text, config, seed=run_seed, tap=recorder)
        trace = _trace(pipe, prompt, config, run_seed, plain, recorder, timings[config])
        if not np.isfinite(trace["group_gram"]).all():
            raise UserError(
                f"the model predicts NaN or infinity for {prompt.text!r}; leave the prompt out, "
                "or load the model in a wider dtype"
            )
        names = plain.report.block_names  # in the order that was seen
        kinds = [name.rpartition(".")[0] for name in names]
        seen = {"num_blocks": blocks, "block_names": names, "block_kinds": kinds}
        trace |= {
            "generation_id": f"{number:05d}-{model['weights_hash']}",
            "model": json.dumps(model | seen),
        }
        rng = np.random.default_rng([seed, number])
        shared = {"generation_id": trace["generation_id"], "prompt": prompt.text}
        rows: list[dict[str, Any]] = []
        for index in range(rollouts):
            if policy is None:
                kind = KINDS[(number * rollouts + index) % len(KINDS)]
                plan = sample_plan(kind, rng, trace, blocks, plain.generation.solver)
            else:
                kind = "policy"
                plan = policy.at(rng.uniform(*POLICY_SPEEDUPS)).begin(plain.generation)
            row = roll_out(pipe, prompt.text, config, run_seed, plan, plain, recorder.predictions)
            rows.append({**shared, "kind": kind, **row})
        trace["profile_seconds"] = time.perf_counter() - started
        traces.add(number, trace, rows)
    return traces


def _trace(
    pipe: Any,
    prompt: Prompt,
    config: GenerationConfig,
    seed: int,
    plain: Generated,
    recorder: TraceRecorder,
    timing: Timing,
) -> dict[str, Any]:
    gram, group_gram, output_norm = recorder.grams()
    sigmas = plain.generation.sigmas
    solver = plain.generation.solver
    return {
        "prompt": prompt.text,
        "category": prompt.category,
        "prompt_embedding": plain.generation.prompt_embedding,
        "seed": seed,
        **dataclasses.asdict(config),
        "scheduler": type(pipe.scheduler).__name__,
        "timesteps": plain.generation.timesteps,
        "sigmas": sigmas,
        "response": solver.response,
        "decay": solver.decay,
        "gram": gram,
        "group_names": ["stack", "output"],
        "group_gram": group_gram,
        "output_norm": output_norm,
        **dataclasses.asdict(timing),
    }
