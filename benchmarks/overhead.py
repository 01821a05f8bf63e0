"""What the runtime costs: hooks with policy `none`, and a plan's speed-up against the ideal.

    python benchmarks/overhead.py --model checkpoints/tiny-latte

Runs are paired, one of each kind after the other in random order; figures are medians of ratios.
The ideal is computed from block times measured in the same process: a computed step costs all
blocks and what is around them, a skipped one only the latter. Plans at the output skip most of that
too, so they may beat it; `ceiling` is what they would reach if a skipped step cost nothing. Writes
`benchmarks/results/overhead-MODEL.json`.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch

import foresight
from foresight.clock import Clock
from foresight.config import GenerationConfig
from foresight.devices import device_name
from foresight.pipeline import call_arguments, load_pipeline
from foresight.plan import Plan
from foresight.policies.fixed import FixedPlan
from foresight.profiling import measure_timing

RESULTS = Path(__file__).resolve().parent / "results"
PROMPT = "a red circle moves left over a blue sky"


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="checkpoints/tiny-latte")
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--pairs", type=int, default=15)
    args = parser.parse_args()
    pipe = load_pipeline(args.model)
    config = GenerationConfig(64, 64, args.frames, 30, 4.0)
    timing = measure_timing(pipe, PROMPT, config)
    steps, blocks = config.num_inference_steps, len(timing.block_seconds)
    rng = np.random.default_rng(0)
    stack, around = timing.block_seconds.sum(), timing.overhead_seconds
    result = {
        "model": Path(args.model).name,
        "device": device_name(pipe),
        "torch": torch.__version__,
        "pairs": args.pairs,
        "hooks_none": _ratio(pipe, config, rng, args.pairs, "none") - 1,
    }
    for speedup in (1.5, 2.0, 3.0):
        count = round(steps / speedup)
        computed = np.zeros(steps, bool)
        computed[np.linspace(0, steps - 1, count).round().astype(int)] = True
        plan = Plan.whole_stack(computed, np.zeros(steps), blocks, at_output=True)
        realised = 1 / _ratio(pipe, config, rng, args.pairs, FixedPlan(plan))
        ideal = steps * (stack + around) / (count * stack + steps * around)
        result[f"plan_{speedup:g}x"] = {
            "computed": count,
            "realised": realised,
            "ceiling": steps / count,
            "ideal": ideal,
            "realised_over_ideal": realised / ideal,
        }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"overhead-{result['model']}.json"
    path.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    print(json.dumps(result, indent=1))  # noqa: T201


def _ratio(
    pipe: object, config: GenerationConfig, rng: np.random.Generator, pairs: int, policy: object
) -> float:
    """Median over pairs of denoising time with the policy over that of the untouched pipeline."""
    ratios = []
    for number in range(pairs + 1):
        took = {}
        for hooked in rng.permutation([False, True]):
            took[bool(hooked)] = _seconds(pipe, config, policy if hooked else None)
        if number:  # the first pair warms up
            ratios.append(took[True] / took[False])
    return float(np.median(ratios))


@torch.no_grad()
def _seconds(pipe: object, config: GenerationConfig, policy: object | None) -> float:
    """Denoising time of one generation; without a policy only the scheduler is watched."""
    call = {
        "prompt": PROMPT,
        **call_arguments(pipe, config),
        "generator": torch.Generator("cpu").manual_seed(0),
        "output_type": "latent",
    }
    if policy is None:
        clock = Clock(pipe.scheduler, lambda: None)
        clock.attach()
        try:
            pipe(**call)
        finally:
            clock.detach()
        return clock.finished - clock.started
    with foresight.reuse(pipe, policy) as session:
        pipe(**call)
    return session.report().denoise_seconds


if __name__ == "__main__":
    main()
