"""All that is measured of one model."""

import math
import platform
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

from benchmarks.gpu_budget import Budget, release_memory
from benchmarks.gpu_compile import BACKENDS, COMPILING_SECONDS, measure_compiled
from benchmarks.gpu_configs import MODELS
from benchmarks.gpu_methods import (
    UNCACHED,
    measure_methods,
    methods,
    whole_stack_plan,
)
from benchmarks.gpu_models import (
    DTYPE,
    BenchmarkModel,
    Scale,
    Size,
    build_pipeline,
    built_as,
    call_arguments,
    heading,
)
from benchmarks.gpu_planning import measure_planning
from benchmarks.gpu_runs import PROBE_STEPS, Bench, attention, fastest_attention, module_seconds
from benchmarks.gpu_text import encoding_seconds
from foresight.blocks import find_blocks
from foresight.config import GenerationConfig
from foresight.devices import device_name

GENERATIONS = 30  # uncached ones that a model's measurements, in one round, take about as long as
COMPILED_ROUNDS = 2
Say = Callable[[str], Any]


def measure(
    name: str,
    scale_name: str,
    device: torch.device,
    *,
    steps: int,
    rounds: int,
    seconds: float,
    say: Say,
) -> dict[str, Any]:
    """Build a model with random weights and measure it.

    Args:
        name: Of the model.
        scale_name: "full" or "tiny".
        device: Where.
        steps: Denoising steps of each generation.
        rounds: Of timed generations.
        seconds: To spend; what finds no time is left out, and named.
        say: Told what is being done.

    Raises:
        torch.OutOfMemoryError: If the model does not fit at its smallest size.
    """
    budget, model = Budget(seconds), MODELS[name]
    scale = model.scale(scale_name)
    result = heading(name, model, scale_name, steps)
    result |= {"weights": "random", "released_steps": model.steps}
    result |= _measure_pipeline(model, scale, device, steps, rounds, budget, say)
    release_memory()
    say("text encoder")
    text = budget.attempt("text encoder", lambda: text_seconds(scale, device))
    result["parts"] = parts(text, result["step_seconds"], result.pop("vae_seconds"), model.steps)
    result["left_out"] = budget.left_out
    result["budget_seconds"], result["took_seconds"] = seconds, seconds - budget.left()
    return result


def _measure_pipeline(
    model: BenchmarkModel,
    scale: Scale,
    device: torch.device,
    steps: int,
    rounds: int,
    budget: Budget,
    say: Say,
) -> dict[str, Any]:
    """What needs the pipeline; when this returns, nothing holds on to it."""
    say("build")
    pipe = build_pipeline(model, scale, device, DTYPE)
    bench, refused = fit(model, scale, pipe, steps, budget, say)
    say("attention backends")
    backend, backends = fastest_attention(bench)
    blocks = find_blocks(pipe.transformer)
    config = bench.config
    result: dict[str, Any] = {
        **facts(pipe),
        "video": {"height": config.height, "width": config.width, "frames": config.num_frames},
        "sizes_refused": refused,
        "parameters": sum(p.numel() for p in pipe.transformer.parameters()),
        "transformer_bytes": sum(p.nbytes for p in pipe.transformer.parameters()),
        "attention": {"chosen": backend, "step_seconds": backends},
    }
    rng = np.random.default_rng(0)
    with attention(backend):
        found, reasons = methods(bench, len(blocks))
        budget.left_out |= reasons
        rows = measure_methods(bench, found, rounds=rounds, rng=rng, budget=budget, say=say)
        result["step_seconds"] = float(np.median(rows[UNCACHED]["seconds"])) / steps
        say("blocks")
        result["blocks"] = budget.attempt("blocks", lambda: block_kinds(bench))
        result["methods"] = rows
        say("VAE")
        result["vae_seconds"] = budget.attempt("VAE", bench.decoding_seconds)
        say("planning")
        result["planning"] = budget.attempt("planning", lambda: measure_planning(bench))
        plan = whole_stack_plan(steps, 2.0, len(blocks))
        timing = {"rounds": min(rounds, COMPILED_ROUNDS), "rng": rng, "budget": budget, "say": say}
        result["compile"] = budget.attempt(
            "compile",
            lambda: measure_compiled(bench, plan, **timing),
            needs=COMPILING_SECONDS[BACKENDS[device.type]],
        )
    return result


def fit(
    model: BenchmarkModel, scale: Scale, pipe: Any, steps: int, budget: Budget, say: Say
) -> tuple[Bench, dict[str, str]]:
    """The largest video that fits into the memory and, by the smallest one's pace, into the time.

    Returns:
        It, run twice to warm up, and why no larger one was taken.

    Raises:
        torch.OutOfMemoryError: If the smallest does not fit.
    """
    *larger, smallest = scale.sizes

    def probe(size: Size) -> tuple[Bench, float]:
        say(f"size {label(size)}")
        call = call_arguments(model, scale, size, pipe.device, DTYPE)
        bench = Bench(pipe, call, GenerationConfig(*size, steps, model.guidance))
        bench.run(steps=PROBE_STEPS)
        return bench, bench.run(steps=PROBE_STEPS).seconds / PROBE_STEPS

    bench, step_seconds = probe(smallest)
    refused: dict[str, str] = {}
    for size in larger:
        least = step_seconds * math.prod(size) / math.prod(smallest)
        if least * steps * GENERATIONS > budget.left():
            refused[label(size)] = f"at {least:.1f} s a step or more it takes too long here"
            continue
        try:
            return probe(size)[0], refused
        except torch.OutOfMemoryError:
            refused[label(size)] = "out of memory"
        release_memory()
    return bench, refused


def label(size: Size) -> str:
    """A size in the usual notation."""
    return "x".join(map(str, size))


def facts(pipe: Any) -> dict[str, Any]:
    """The machine and the versions."""
    return {
        "device": device_name(pipe),
        "device_type": pipe.device.type,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "diffusers": version("diffusers"),
        "transformers": version("transformers"),
        "cuda": torch.version.cuda,
    }


def block_kinds(bench: Bench) -> list[dict[str, Any]]:
    """How many blocks of each kind there are, and what one of them takes in a step."""
    blocks = find_blocks(bench.pipe.transformer)
    modules = {block.name: block.module for block in blocks}
    seconds = module_seconds(bench, modules, min(4, bench.steps))
    kinds: dict[str, list[float]] = {}
    for block, each in zip(blocks, seconds, strict=True):
        kinds.setdefault(block.kind, []).append(float(each))
    return [
        {"kind": kind, "count": len(each), "seconds_per_step": float(np.median(each))}
        for kind, each in kinds.items()
    ]


@torch.no_grad()
def text_seconds(scale: Scale, device: torch.device) -> float:
    """Time to encode one generation's texts by the model's encoders, built one after the other."""
    total = 0.0
    for encoder in scale.encoders:
        with built_as(device, DTYPE):
            module = encoder.build()
        total += encoding_seconds(encoder, module, device)
        del module
        release_memory()
    return total


def parts(text: float | None, step: float, vae: float | None, steps: int) -> dict[str, Any]:
    """Seconds of each part of a generation of `steps` steps, and their shares.

    Where a part was not measured, it is left out of the shares.
    """
    known = {"text_encoder": text, "dit": step * steps, "vae": vae}
    total = sum(seconds for seconds in known.values() if seconds is not None)
    return {
        name: None if seconds is None else {"seconds": seconds, "share": seconds / total}
        for name, seconds in known.items()
    }
