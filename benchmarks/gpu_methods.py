"""The methods that are timed beside the untouched pipeline, and what is measured of each."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from benchmarks.gpu_budget import Budget
from benchmarks.gpu_runs import Bench, Run, ideal_speedup, module_seconds
from benchmarks.gpu_syncs import count_syncs
from foresight.peers import PeerPolicy
from foresight.peers.session import PeerReport
from foresight.plan import COMPUTE, HISTORY, Plan, plain_weights
from foresight.policies import load_policy
from foresight.policies.base import Policy
from foresight.policies.fixed import FixedPlan, NonePolicy
from foresight.record import Report
from foresight.recorder import TraceRecorder
from foresight.runner import Tap
from foresight.sketch import Sketcher

UNCACHED = "uncached"
PROFILER = "profiler"
SPEEDUPS = (1.5, 2.0, 3.0)
WEIGHTS = (1.5, -0.6, 0.1)  # like those that are learned; the time does not depend on them
# Settings at which each skips something in ten steps; on random weights, what they decide means
# nothing, and what deciding costs is what is wanted.
REACTIVE = (
    "foresight[threshold=2,recompute_interval=2,warmup_steps=3]",
    "pab[spatial=2,temporal=4,cross=6,start=1001,end=-1]",
    "fbcache[threshold=0.2]",
    "magcache[threshold=0.24,max_skips=2]",
    "taylorseer[interval=2,order=1]",
    "cache-dit[threshold=0.2,warmup_steps=3]",
)


@dataclasses.dataclass(frozen=True)
class Method:
    """A policy, and for the profiler what makes its tap."""

    policy: Policy
    tap: Callable[[], Tap] | None = None

    def run(self, bench: Bench) -> Run:
        """One generation."""
        return bench.run(self.policy, tap=None if self.tap is None else self.tap())


def whole_stack_plan(steps: int, speedup: float, num_blocks: int) -> Plan:
    """A plan at the output that computes evenly spaced steps and weights what there is."""
    computed = np.zeros(steps, bool)
    computed[np.linspace(0, steps - 1, max(1, round(steps / speedup))).round().astype(int)] = True
    seen = np.cumsum(computed)
    weights = plain_weights(steps)
    there = seen[:, None] > np.arange(HISTORY)
    later = seen <= np.arange(steps)  # something was skipped by then
    weights[later] = np.where(there, WEIGHTS, 0)[later]
    return Plan.of_output(computed, weights, num_blocks)


def methods(bench: Bench, num_blocks: int) -> tuple[dict[str, Method], dict[str, str]]:
    """Those that run on this pipeline by name, and why the others do not."""
    config = bench.config

    def recorder() -> Tap:
        return TraceRecorder(num_blocks, Sketcher(), config.guidance_scale)

    found = {"none": Method(NonePolicy())}
    for speedup in SPEEDUPS:
        plan = whole_stack_plan(config.num_inference_steps, speedup, num_blocks)
        found[f"plan {speedup:g}x"] = Method(FixedPlan(plan))
    reasons = {}
    for spec in REACTIVE:
        policy = load_policy(spec)
        reason = policy.unfit(bench.pipe) if isinstance(policy, PeerPolicy) else None
        if reason is None:
            found[policy.name] = Method(policy)
        else:
            reasons[policy.name] = reason
    found[PROFILER] = Method(NonePolicy(), recorder)
    return found, reasons


def measure_methods(
    bench: Bench,
    candidates: Mapping[str, Method],
    *,
    rounds: int,
    rng: np.random.Generator,
    budget: Budget,
    say: Callable[[str], Any],
) -> dict[str, dict[str, Any]]:
    """Warm every method up while its waits are counted, then time all of them in rounds.

    In a round each method and the untouched pipeline run once, in random order; figures are medians
    of the ratios within rounds. What fails, or has no time left, is noted in the budget.

    Returns:
        A row per method; first of all `uncached`.
    """
    runs: dict[str, Callable[[], Run]] = {UNCACHED: lambda: bench.run().off_gpu()}
    rows: dict[str, dict[str, Any]] = {UNCACHED: {"syncs": count_syncs(bench, bench.run)}}
    for name, method in candidates.items():
        say(f"warm-up, {name}")

        def warm_up(name: str = name, method: Method = method) -> None:
            ready = dataclasses.replace(method, policy=bench.prepared(method.policy))
            rows[name] = {
                "setting": method.policy.setting,
                "syncs": count_syncs(bench, lambda: ready.run(bench)),
            }
            runs[name] = lambda: ready.run(bench).off_gpu()

        budget.attempt(name, warm_up)
    done = timed_rounds(runs, rounds=rounds, rng=rng, budget=budget, say=say)
    timer = _Timer(bench, float(np.median([run.seconds for run in done[UNCACHED]])) / bench.steps)
    for name, made in done.items():
        rows[name] |= _row(made, done[UNCACHED], timer)
    return {name: rows[name] for name in done}


def timed_rounds(
    runs: Mapping[str, Callable[[], Run]],
    *,
    rounds: int,
    rng: np.random.Generator,
    budget: Budget,
    say: Callable[[str], Any],
) -> dict[str, list[Run]]:
    """Run everything once a round in random order; fewer rounds, but one, where time is short.

    What fails is noted in the budget, and not among the results.
    """
    done: dict[str, list[Run]] = {name: [] for name in runs}
    for number in range(rounds):
        if number and not budget.allows_another_round():
            break
        with budget.round():
            for index in rng.permutation(len(runs)):
                name = list(runs)[index]
                if name not in done:
                    continue
                say(f"round {number + 1} of {rounds}, {name}")
                made = budget.attempt(name, runs[name], needs=-math.inf)
                if made is None:
                    del done[name]
                else:
                    done[name].append(made)
    return done


class _Timer:
    """Seconds per uncached step, of all of it and of any modules in it."""

    def __init__(self, bench: Bench, step_seconds: float) -> None:
        self._bench, self.step_seconds = bench, step_seconds
        self._known: dict[str, float] = {}

    def units(self, names: list[str]) -> np.ndarray:
        """(N,) seconds per step of modules by their dotted names; timed when first asked for."""
        if not all(name in self._known for name in names):
            modules = {name: self._bench.pipe.transformer.get_submodule(name) for name in names}
            steps = min(4, self._bench.steps)
            self._known |= zip(names, module_seconds(self._bench, modules, steps), strict=True)
        return np.asarray([self._known[name] for name in names])


def _row(made: list[Run], uncached: list[Run], timer: _Timer) -> dict[str, Any]:
    """What is measured of a method, beside the uncached runs of the same rounds."""
    last = made[-1]
    row: dict[str, Any] = {
        "seconds": [run.seconds for run in made],
        "peak_bytes": last.peak_bytes,
        "latents_finite": bool(last.latents.isfinite().all()),
    }
    if last.report is None:
        return row
    shares = computed_shares(last.report)
    speedup = median_speedup(uncached, made)
    ideal = ideal_speedup(timer.step_seconds, timer.units(last.report.block_names), shares)
    extra = None
    if last.peak_bytes is not None and uncached[-1].peak_bytes is not None:
        extra = last.peak_bytes - uncached[-1].peak_bytes
    return row | {
        "compute_fraction": float(shares.mean()),
        "speedup": speedup,
        "ceiling_speedup": 1 / float(shares.mean()),
        "ideal_speedup": ideal,
        "realised_over_ideal": speedup / ideal,
        "cache_bytes": last.report.cache_bytes,
        "extra_peak_bytes": extra,
        "plan_seconds": last.report.plan_seconds,
    }


def median_speedup(uncached: list[Run], made: list[Run]) -> float:
    """Median over rounds of the time without a method over that with it."""
    pairs = zip(uncached, made, strict=True)
    return float(np.median([plain.seconds / run.seconds for plain, run in pairs]))


def computed_shares(report: Report) -> np.ndarray:
    """(S, N) of each unit that was computed."""
    if isinstance(report, PeerReport):
        return report.shares
    return (report.actions == COMPUTE).astype(float)
