"""`torch.compile` of the blocks under the runtime: graphs, recompilations, speed."""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch._dynamo.utils import counters

from benchmarks.gpu_budget import Budget
from benchmarks.gpu_methods import timed_rounds
from benchmarks.gpu_runs import PROBE_STEPS, Bench
from foresight.blocks import Block, find_blocks
from foresight.plan import Plan
from foresight.rollout import FixedPlan

# On a CPU the graphs are what is looked at, and nothing is gained by waiting for a C++ compiler.
BACKENDS = {"cuda": "inductor", "cpu": "eager"}
COMPILING_SECONDS = {"inductor": 90.0, "eager": 0.0}  # at least to be had, or it is not begun


def measure_compiled(
    bench: Bench,
    plan: Plan,
    *,
    rounds: int,
    rng: np.random.Generator,
    budget: Budget,
    say: Callable[[str], Any],
) -> dict[str, Any]:
    """Compile every block as one whole graph, and run them with and without the runtime.

    Returns:
        `graphs` after the untouched pipeline has run, `recompiles`: graphs that policy `none` and
        the plan then add; `speedup` of the compiled untouched pipeline over the eager one, of the
        plan over the compiled untouched pipeline, and what hooks with policy `none` add to that.
    """
    backend = BACKENDS[bench.device.type]
    blocks = find_blocks(bench.pipe.transformer)
    torch.compiler.reset()
    counters.clear()
    started = time.perf_counter()
    for block in blocks:
        block.module.compile(backend=backend, fullgraph=True)
    try:
        say(f"compile {len(blocks)} blocks")
        bench.run(steps=PROBE_STEPS)
        compiling = time.perf_counter() - started
        graphs = _graphs()
        bench.run("none", steps=PROBE_STEPS)
        bench.run(FixedPlan(plan))
        added = _graphs() - graphs
        breaks = sum(counters["graph_break"].values())

        def eager() -> Any:
            with _uncompiled(blocks):
                return bench.run()

        runs = {
            "eager": eager,
            "uncached": bench.run,
            "none": lambda: bench.run("none"),
            "plan": lambda: bench.run(FixedPlan(plan)),
        }
        done = timed_rounds(runs, rounds=rounds, rng=rng, budget=budget, say=say)
    finally:
        for block in blocks:
            block.module._compiled_call_impl = None
        torch.compiler.reset()
    seconds = {name: [run.seconds for run in made] for name, made in done.items()}
    return {
        "backend": backend,
        "blocks": len(blocks),
        "graphs": graphs,
        "recompiles": added,
        "graph_breaks": breaks,
        "compile_seconds": compiling,
        "seconds": seconds,
        "speedup_over_eager": _median_ratio(seconds["eager"], seconds["uncached"]),
        "hooks_overhead": _median_ratio(seconds["none"], seconds["uncached"]) - 1,
        "plan_speedup": _median_ratio(seconds["uncached"], seconds["plan"]),
        "plan_compute_fraction": plan.compute_fraction(),
    }


def _graphs() -> int:
    return counters["stats"]["unique_graphs"]


def _median_ratio(over: list[float], under: list[float]) -> float:
    return float(np.median(np.divide(over, under)))


@contextlib.contextmanager
def _uncompiled(blocks: Sequence[Block]) -> Iterator[None]:
    kept = [block.module._compiled_call_impl for block in blocks]
    for block in blocks:
        block.module._compiled_call_impl = None
    try:
        yield
    finally:
        for block, call in zip(blocks, kept, strict=True):
            block.module._compiled_call_impl = call
