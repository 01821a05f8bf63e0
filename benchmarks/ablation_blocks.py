"""The variants that reuse inside of the model: the residual of all blocks, or that of each."""

import dataclasses

import numpy as np

from benchmarks.ablation_variants import Known, Variant, forecasts, least_squares, plain
from foresight.plan import COMPUTE, Plan
from foresight.planner import shortest_paths
from foresight.policies.base import Generation
from foresight.policies.learned import LearnedPolicy
from foresight.policies.multistep import coordinates, local_energies
from foresight.policies.reaction import gains_after
from foresight.policies.trajectory import interpolated


class AtResidual(Variant):
    """As a variant whose weights are `(1 + beta, -beta, 0)`, but of the blocks' summed residual.

    Where a step is skipped, what is before and after the blocks runs on the latents at hand.
    """

    def plan(
        self, policy: LearnedPolicy, generation: Generation, own: np.ndarray, speedup: float
    ) -> Plan:
        """See `Variant.plan`."""
        plan = super().plan(policy, generation, own, speedup)
        computed = plan.actions[:, 0] == COMPUTE
        return Plan.whole_stack(computed, -plan.weights[:, 1], generation.num_blocks)


class BlockByBlock(Variant):
    """Every block has steps of its own, as many as another one; its residual is forecast.

    Those whose runs leave least in sum, with the gains of the model's predictions, as if what a
    block leaves reached the prediction as it is; by least squares along the last difference.
    """

    def plan(
        self, policy: LearnedPolicy, generation: Generation, own: np.ndarray, speedup: float
    ) -> Plan:
        """See `Variant.plan`."""
        known = Known.of(policy, generation, own)
        count = max(1, round(generation.num_steps / speedup))
        gains = gains_after(known.solver, known.reaction)
        actions = np.zeros((generation.num_steps, generation.num_blocks), np.uint8)
        betas = np.zeros(actions.shape, np.float32)
        for block in range(generation.num_blocks):
            path = block_path(policy, known.sigmas, block)
            left = local_energies(path, known.solver, generation.num_steps, history=2) * gains
            *_, (_, computed) = shortest_paths(left, count)
            weights = forecasts(least_squares)(dataclasses.replace(known, path=path), computed)
            alone = Plan.whole_stack(computed, -weights[:, 1], 1)
            actions[:, block], betas[:, block] = alone.actions[:, 0], alone.coefficients[:, 0]
        return Plan(actions, betas)


def block_path(policy: LearnedPolicy, sigmas: np.ndarray, block: int) -> np.ndarray:
    """A block's residuals to be expected at noise levels (S,): (S, R) coordinates."""
    model = policy.model
    rows = coordinates(model.kernel[1 + block].double().numpy())
    return interpolated(rows, model.grid.double().numpy(), sigmas)


INSIDE = {
    "plain reuse of the residual": AtResidual(
        "its steps; the blocks' latest summed residual instead of the prediction", how=plain
    ),
    "forecast of the residual": AtResidual(
        "its steps; the blocks' summed residual by the two-point forecast's coefficients",
        how=forecasts(least_squares),
    ),
    "block by block": BlockByBlock(
        "each block its own steps, as many, whose runs leave least in sum; two-point forecasts"
    ),
}
