"""How long a trained policy takes to plan 50 steps of 60 blocks, on one core.

    python benchmarks/planning.py --model checkpoints/tiny-wan \
        --policy checkpoints/policies/tiny-wan

The first plan of a schedule, for which the steps are searched, and the median of those that follow.
Writes `benchmarks/results/planning-MODEL.json`.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch

from foresight.clock import noise_levels
from foresight.config import GenerationConfig
from foresight.devices import device_name
from foresight.pipeline import load_pipeline
from foresight.policies.base import Generation
from foresight.policies.learned import LearnedPolicy

RESULTS = Path(__file__).resolve().parent / "results"
STEPS, BLOCKS, REPEATS = 50, 60, 50
SPEEDUPS = (1.5, 2.0, 3.0)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="checkpoints/tiny-wan")
    parser.add_argument("--policy", default="checkpoints/policies/tiny-wan")
    args = parser.parse_args()
    torch.set_num_threads(1)
    pipe = load_pipeline(args.model)
    pipe.scheduler.set_timesteps(STEPS)
    result = {
        "model": Path(args.model).name,
        "device": device_name(pipe),
        "steps": STEPS,
        "blocks": BLOCKS,
        "milliseconds": {
            f"{speedup:g}x": planned(LearnedPolicy.from_pretrained(args.policy), pipe, speedup)
            for speedup in SPEEDUPS
        },
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"planning-{result['model']}.json"
    path.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    print(json.dumps(result, indent=1))  # noqa: T201


def planned(policy: LearnedPolicy, pipe: object, speedup: float) -> dict[str, float]:
    """Milliseconds of the first plan, and the median of later ones."""
    policy, took = policy.at(speedup), []
    for _ in range(1 + REPEATS):
        generation = _generation(policy, pipe)  # anew, so that the solver is asked for each time
        started = time.perf_counter()
        policy.begin(generation)
        took.append(1e3 * (time.perf_counter() - started))
    return {"first": took[0], "later": statistics.median(took[1:])}


def _generation(policy: LearnedPolicy, pipe: object) -> Generation:
    timesteps, sigmas = noise_levels(pipe.scheduler)
    return Generation(
        config=GenerationConfig(64, 64, 16, STEPS, 4.0),
        timesteps=timesteps,
        sigmas=sigmas,
        prompt_embedding=policy.model.prompt_mean.numpy(),
        block_names=tuple(map(str, range(BLOCKS))),
        block_kinds=("blocks",) * BLOCKS,
        scheduler=pipe.scheduler,
    )


if __name__ == "__main__":
    main()
