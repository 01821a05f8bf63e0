"""One video, generated under many plans and compared with the uncached one."""

import dataclasses
from typing import Any

import numpy as np

from benchmarks.ablation_steps import local_search
from benchmarks.ablation_variants import Variant
from foresight.evaluation import Video
from foresight.pipeline import generate
from foresight.plan import COMPUTE, Plan
from foresight.policies.learned import LearnedPolicy
from foresight.recorder import PredictionRecorder
from foresight.rollout import roll_out
from foresight.sketch import Sketcher

Row = dict[str, Any]


class Bench:
    """Generates the uncached video, and then any plan once.

    Args:
        pipe: A diffusers pipeline.
        video: Prompt, seed and configuration.

    Attributes:
        own: (S, S) inner products of the uncached predictions, on average 1 with themselves.
    """

    def __init__(self, pipe: Any, video: Video) -> None:
        self._pipe, self._video = pipe, video
        self._seen = PredictionRecorder(Sketcher(), video.config.guidance_scale)
        self._reference = generate(
            pipe, video.prompt.text, video.config, seed=video.seed, tap=self._seen
        )
        self._generation = self._reference.generation
        gram = self._seen.gram()
        self.own = gram / np.diag(gram).mean()
        self._measured: dict[tuple[bool | bytes, ...], Row] = {}

    def planned(self, name: str, policy: LearnedPolicy, variant: Variant, speedup: float) -> Row:
        """A line of the results: S / speedup steps are computed."""
        plan = variant.plan(policy, self._generation, self.own, speedup)
        return self._row(name, speedup, plan)

    def searched(self, name: str, policy: LearnedPolicy, speedup: float, evaluations: int) -> Row:
        """A line of the results: the best steps that local search finds from the policy's on.

        It sees the uncached video, so this is no method but what better steps could still gain.
        """

        def plan_of(computed: np.ndarray) -> Plan:
            given = Variant("", when=lambda *_: computed)
            return given.plan(policy, self._generation, self.own, speedup)

        start = Variant("").plan(policy, self._generation, self.own, speedup)
        found = local_search(
            start.actions[:, 0] == COMPUTE,
            lambda computed: self._run(plan_of(computed))["final_error"],
            evaluations,
            np.random.default_rng(int(self._video.key[:8], 16)),
        )
        return self._row(name, speedup, plan_of(found))

    def _row(self, name: str, speedup: float, plan: Plan) -> Row:
        video = {"prompt": self._video.prompt.text, "seed": self._video.seed}
        video |= dataclasses.asdict(self._video.config)
        return {"variant": name, "speedup": speedup, **video, **self._run(plan)}

    def _run(self, plan: Plan) -> Row:
        tables = plan.actions, plan.coefficients, plan.weights
        key = plan.at_output, *(table.tobytes() for table in tables)
        if key not in self._measured:
            video = self._video
            facts = (video.prompt.text, video.config, video.seed)
            made = roll_out(self._pipe, *facts, plan, self._reference, self._seen)
            wanted = ("compute_fraction", "psnr", "final_error")
            self._measured[key] = {name: made[name] for name in wanted}
        return self._measured[key]
