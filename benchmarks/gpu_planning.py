"""How long a learned policy plans before a generation, on one core."""

import contextlib
import dataclasses
import statistics
import time
from typing import Any

import numpy as np
import torch

from benchmarks.gpu_runs import Bench
from foresight.policies.base import Generation, Policy
from foresight.policies.learned import LearnedPolicy
from foresight.policies.network import ReuseModel
from foresight.solver import euler_solver

STEPS, BLOCKS, LEVELS, SPEEDUP, REPEATS = 50, 60, 50, 2.0, 5


class _SeenError(Exception):
    """Ends a generation whose first step was about to begin."""


@dataclasses.dataclass
class _Onlooker(Policy):
    """Takes what a policy is told before the first step, and stops there."""

    generation: Generation | None = None
    name = "onlooker"

    def begin(self, generation: Generation) -> Any:
        self.generation = generation
        raise _SeenError


def measure_planning(bench: Bench) -> dict[str, Any]:
    """Median seconds from what is known of a generation to its plan, after one to warm up.

    The generation is one of this pipeline, of 50 steps, and counted as of 60 blocks; the network is
    as large as a trained one, with random weights. The solver is read off once, by the generation
    that warms up. `first_seconds` are those of a policy's first plan for it: its steps are searched
    then, and the same for all that follow.
    """
    onlooker = _Onlooker()
    with contextlib.suppress(_SeenError):
        bench.run(onlooker, steps=STEPS)
    assert onlooker.generation is not None
    kinds = {"block_names": tuple(map(str, range(BLOCKS))), "block_kinds": ("blocks",) * BLOCKS}
    width = len(onlooker.generation.prompt_embedding)
    network, sigmas = ReuseModel(BLOCKS, width, LEVELS, [LEVELS]), np.linspace(1, 0, LEVELS)
    flow = euler_solver(sigmas)._replace(decay=np.ones(LEVELS), known=True)
    network.paths[0].fit(sigmas, np.eye(LEVELS), flow, guidance_scale=1.0)
    costs = {"block_seconds": [1.0] * BLOCKS, "overhead_seconds": 0.0, "skip_seconds": 0.0}
    threads, computed = torch.get_num_threads(), 0
    seconds: dict[str, list[float]] = {"first_seconds": [], "seconds": []}
    torch.set_num_threads(1)
    try:
        for _ in range(1 + REPEATS):
            policy = LearnedPolicy(network, {}, costs).at(SPEEDUP)
            for took in seconds.values():
                generation = dataclasses.replace(onlooker.generation, **kinds)
                started = time.perf_counter()
                plan = policy.begin(generation)
                took.append(time.perf_counter() - started)
                computed = round(plan.compute_fraction() * STEPS)
    finally:
        torch.set_num_threads(threads)
    return {
        **{name: statistics.median(took[1:]) for name, took in seconds.items()},
        "steps": STEPS,
        "blocks": BLOCKS,
        "planned_steps": computed,
    }
