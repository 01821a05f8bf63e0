"""The profiler: one ordinary generation gives every block's Gram matrix over steps."""

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from foresight.config import GenerationConfig, Prompt
from foresight.fingerprint import fingerprint
from foresight.pipeline import Generated, generate
from foresight.plan import Plan
from foresight.rollout import KINDS, FixedPlan, roll_out, sample_plan
from foresight.session import MODEL
from foresight.sketch import Sketcher
from foresight.traces import TraceSet


class TraceRecorder:
    """Sketches residuals as blocks produce them; pass it as the `tap` of a session.

    Blocks may see the token grid in two layouts (frames outside, or tokens outside, as spatial and
    temporal blocks do). Which one is seen from the stream: what enters a block is what left the one
    before it, as it was or transposed. Residuals are sketched in the first block's layout, so that
    their sketches add up to that of the whole stack's residual.
    """

    def __init__(self, num_blocks: int, sketcher: Sketcher, guidance_scale: float = 1.0) -> None:
        self._sketcher, self._num_blocks = sketcher, num_blocks
        self._guidance_scale = guidance_scale
        self._outputs: dict[tuple[int, int], torch.Tensor] = {}
        self._sketches: dict[tuple[int, int, int], torch.Tensor] = {}
        self._norms: dict[tuple[int, int, int], torch.Tensor] = {}
        self._transposed: dict[int, bool] = {0: False}
        self._before: torch.Tensor | None = None
        self._reference = torch.Size()

    def __call__(
        self, step: int, branch: int, block: int, stream: torch.Tensor, output: torch.Tensor
    ) -> None:
        """Sketch what a block added to its stream, or the model's prediction."""
        if block == MODEL:
            prediction = output[:, : stream.shape[1]].float()  # some predict a variance behind it
            if self._guidance_scale > 1 and len(prediction) % 2 == 0:
                without, with_prompt = prediction.chunk(2)
                prediction = without + self._guidance_scale * (with_prompt - without)
            self._outputs[step, branch] = self._sketcher(prediction.reshape(1, -1))[0]
            return
        if block == 0:
            self._reference = stream.shape
        elif block not in self._transposed:
            self._transposed[block] = self._turned(block, stream)
        if step == 0 and branch == 0:
            self._before = output
        residual = output - stream
        if self._transposed[block]:
            residual = _swap(residual, self._reference)
        key = step, branch, block
        self._sketches[key] = self._sketcher(residual.reshape(1, -1))[0]
        self._norms[key] = output.float().square().sum()

    def _turned(self, block: int, stream: torch.Tensor) -> bool:
        """Whether this block sees the transposed layout, given that of the block before."""
        assert self._before is not None
        before = self._transposed[block - 1]
        same_shape = stream.shape == self._before.shape
        if stream.ndim != 3 or stream.numel() != self._before.numel():
            return before
        swapped = _swap(self._before, stream.shape)
        if swapped.shape != stream.shape:
            return before
        if not same_shape:
            return not before
        kept = (stream - self._before).float().square().sum()
        turned = (stream - swapped).float().square().sum()
        return before ^ bool(turned < kept)

    def grams(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What was recorded.

        Returns:
            gram (N, S, S), group_gram (2, S, S) of the whole stack's residual and of the model's
            output (guided where both CFG branches are one batch), output_norm (N, S).
        """
        steps = 1 + max(step for step, _, _ in self._sketches)
        branches = 1 + max(branch for _, branch, _ in self._sketches)
        gram = np.zeros((self._num_blocks, steps, steps))
        stack_gram = np.zeros((steps, steps))
        output_gram = np.zeros((steps, steps))
        energy = np.zeros((self._num_blocks, steps))
        for branch in range(branches):
            sketches = torch.stack(
                [
                    torch.stack([self._sketches[step, branch, block] for step in range(steps)])
                    for block in range(self._num_blocks)
                ]
            ).double()
            gram += (sketches @ sketches.mT).cpu().numpy()
            stack = sketches.sum(dim=0)
            stack_gram += (stack @ stack.mT).cpu().numpy()
            outputs = torch.stack([self._outputs[step, branch] for step in range(steps)]).double()
            output_gram += (outputs @ outputs.mT).cpu().numpy()
            for block in range(self._num_blocks):
                norms = [self._norms[step, branch, block] for step in range(steps)]
                energy[block] += torch.stack(norms).cpu().numpy()
        scale = energy.mean(axis=1)
        groups = np.stack([stack_gram / scale[-1], output_gram / np.diag(output_gram).mean()])
        return gram / scale[:, None, None], groups, np.sqrt(energy)


def _swap(tokens: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Transpose (B * n, m, D) into (B * m, n, D), where `shape` is that of the other layout."""
    batch = max(1, tokens.shape[0] // shape[1])
    grid = tokens.reshape(batch, -1, *tokens.shape[1:])
    return grid.transpose(1, 2).reshape(-1, grid.shape[1], tokens.shape[-1])


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds of a plain run: per block call (N,), per step outside the blocks, and per part.

    `skip_seconds` is what a step takes in which the model is not run at all.
    """

    block_seconds: np.ndarray
    overhead_seconds: float
    skip_seconds: float
    text_seconds: float
    denoise_seconds: float
    vae_seconds: float


def measure_timing(pipe: Any, prompt: str, config: GenerationConfig) -> Timing:
    """Time every block of an uncached run, after a run to warm up. Medians over the steps."""
    quick = dataclasses.replace(config, num_inference_steps=4)
    generate(pipe, prompt, quick, seed=0)
    plain = generate(pipe, prompt, config, seed=0)
    count = len(plain.report.block_names)
    times: list[list[float]] = [[] for _ in range(count)]
    mark = 0.0

    def tick(
        step: int, branch: int, block: int, stream: torch.Tensor, output: torch.Tensor
    ) -> None:
        nonlocal mark
        if block == MODEL:
            return
        if stream.is_cuda:
            torch.cuda.synchronize(stream.device)
        now = time.perf_counter()
        if block > 0 or branch > 0:
            times[block].append(now - mark)
        mark = time.perf_counter()

    generate(pipe, prompt, config, seed=0, tap=tick)
    # The first block starts in the dark; blocks of one kind cost the same.
    medians = np.asarray([np.median(block or times[-2 if count > 2 else -1]) for block in times])
    calls = plain.report.actions.shape[0]
    total = plain.denoise_seconds / calls
    scale = min(1.0, 0.98 * total / medians.sum())
    seconds = medians * scale
    once = Plan.whole_stack(np.arange(calls) == 0, np.zeros(calls), count, at_output=True)
    idle = generate(pipe, prompt, config, seed=0, policy=FixedPlan(once))
    skipped = max(0.0, (idle.denoise_seconds - total) / max(1, calls - 1))
    return Timing(
        block_seconds=seconds,
        overhead_seconds=total - seconds.sum(),
        skip_seconds=skipped,
        text_seconds=plain.text_seconds,
        denoise_seconds=plain.denoise_seconds,
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
) -> TraceSet:
    """Profile every prompt in every configuration, and roll plans out; continues what is there.

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
    }
    traces = TraceSet.create(output, settings)
    missing = [number for number in range(len(jobs)) if not traces.has(number)]
    timings: dict[GenerationConfig, Timing] = {}
    for number in tqdm(missing, initial=len(jobs) - len(missing), total=len(jobs), desc="profile"):
        prompt, config = jobs[number]
        if config not in timings:
            timings[config] = measure_timing(pipe, prompt.text, config)
        recorder = TraceRecorder(model["num_blocks"], Sketcher(sketch_width), config.guidance_scale)
        run_seed = seed + number
        plain = generate(pipe, prompt.text, config, seed=run_seed, tap=recorder)
        trace = _trace(pipe, prompt, config, run_seed, plain, recorder, timings[config])
        trace |= {
            "generation_id": f"{number:05d}-{model['weights_hash']}",
            "model": json.dumps(model),
        }
        rng = np.random.default_rng([seed, number])
        rows = []
        for index in range(rollouts):
            kind = KINDS[index % len(KINDS)]
            plan = sample_plan(
                kind, rng, trace["group_gram"][1], trace["sigmas"], model["num_blocks"]
            )
            row = roll_out(pipe, prompt.text, config, run_seed, plan, plain)
            rows.append(
                {
                    "generation_id": trace["generation_id"],
                    "prompt": prompt.text,
                    "kind": kind,
                    **row,
                }
            )
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
    return {
        "prompt": prompt.text,
        "category": prompt.category,
        "prompt_embedding": plain.prompt_embedding,
        "seed": seed,
        **dataclasses.asdict(config),
        "scheduler": type(pipe.scheduler).__name__,
        "timesteps": plain.timesteps,
        "sigmas": plain.sigmas,
        "gram": gram,
        "group_names": ["stack", "output"],
        "group_gram": group_gram,
        "output_norm": output_norm,
        **dataclasses.asdict(timing),
    }
