"""How much better the steps could have been chosen: local search on the measured error."""

from collections.abc import Callable

import numpy as np

from benchmarks.ablation_policies import ExactCount, GivenSteps
from benchmarks.ablation_runs import Bench, Row, Run
from foresight.pipeline import Generated
from foresight.plan import COMPUTE
from foresight.policies.learned import LearnedPolicy


def local_search(
    computed: np.ndarray,
    error_of: Callable[[np.ndarray], float],
    least: float,
    rng: np.random.Generator,
    num_evaluations: int,
) -> np.ndarray:
    """Swap a computed with a skipped step for as long as it helps; near steps are tried more often.

    Args:
        computed: bool (S,), where to start; step 0 stays computed.
        error_of: Measures the error of such a choice.
        least: Error of the start.
        rng: Source of chance.
        num_evaluations: Choices to measure at most; none is measured twice.

    Returns:
        bool (S,), the best choice met, with as many computed steps.
    """
    seen = {computed.tobytes()}
    for _ in range(num_evaluations):
        dropped, added = np.flatnonzero(computed)[1:], np.flatnonzero(~computed)
        pairs = [(i, j) for i in dropped for j in added]
        choices = {pair: _swapped(computed, *pair) for pair in pairs}
        fresh = [pair for pair in pairs if choices[pair].tobytes() not in seen]
        if not fresh:
            break
        nearness = np.array([1 / abs(i - j) for i, j in fresh])
        choice = choices[fresh[rng.choice(len(fresh), p=nearness / nearness.sum())]]
        seen.add(choice.tobytes())
        error = error_of(choice)
        if error < least:
            computed, least = choice, error
    return computed


def _swapped(computed: np.ndarray, dropped: np.intp, added: np.intp) -> np.ndarray:
    other = computed.copy()
    other[dropped], other[added] = False, True
    return other


class SearchRun(Run):
    """The best steps that local search finds for each video, from the policy's own on.

    Forecasts and corrections are the policy's; only the steps differ. The search sees the uncached
    video, so this is no method but what a better choice of steps could still gain.
    """

    name = "searched"

    def __init__(
        self, policy: LearnedPolicy, speedup: float, num_evaluations: int, seed: int
    ) -> None:
        self.policy, self.speedup, self.seed = policy, speedup, seed
        self.num_evaluations, self.num_generations = num_evaluations, 1 + num_evaluations

    def rows(self, bench: Bench) -> list[Row]:
        """One row."""
        start = bench.run(ExactCount.of(self.policy).at(self.speedup))
        assert start.report.plan is not None
        computed = start.report.plan.actions[:, 0] == COMPUTE
        made = {computed.tobytes(): start}

        def error_of(choice: np.ndarray) -> float:
            made[choice.tobytes()] = self._generated(bench, choice)
            return bench.final_error(made[choice.tobytes()])

        rng = np.random.default_rng([self.seed, int(bench.video.key[:8], 16)])
        least = bench.final_error(start)
        found = local_search(computed, error_of, least, rng, self.num_evaluations)
        best = made[found.tobytes()]
        setting = f"evaluations={len(made) - 1}"
        return [bench.row(best, self.name, speedup=self.speedup, setting=setting)]

    def _generated(self, bench: Bench, choice: np.ndarray) -> Generated:
        policy = GivenSteps.chosen_by(self.policy, lambda *_: choice)
        return bench.run(policy.at(self.speedup))
