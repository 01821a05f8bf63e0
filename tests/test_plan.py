import numpy as np
import pytest

from foresight.plan import COMPUTE, FORECAST, REUSE, Plan, compile_plan

KINDS = {
    "alternating": ["spatial", "temporal"] * 3,
    "alike": ["block"] * 6,
    "in a row": ["double"] * 2 + ["single"] * 4,
}


def random_plan(rng: np.random.Generator, steps: int, blocks: int, patterns: int) -> Plan:
    """Blocks take one of a few patterns, so that some can share a slot and some cannot."""
    actions = np.zeros((steps, patterns), np.uint8)
    betas = np.zeros((steps, patterns), np.float32)
    for pattern in range(patterns):
        computed, share = 1, rng.random()
        for step in range(1, steps):
            if rng.random() >= share:
                computed += 1
            elif computed > 1 and rng.random() < 0.5:
                actions[step, pattern] = FORECAST
                betas[step, pattern] = rng.normal()
            else:
                actions[step, pattern] = REUSE
    picks = rng.integers(patterns, size=blocks)
    return Plan(actions[:, picks], betas[:, picks])


def interpret(rows, kinds):
    """Run compiled rows on symbols instead of tensors.

    A slot holds the (step, block) pairs whose residuals were added up in it. Returns what each step
    added to the stream, as {(step, block): coefficient} with where it was added, and how often each
    stored pair was read.
    """
    latest, previous, added, reads = {}, {}, [], {}
    for step, row in enumerate(rows):
        now = {}
        for block, operation in enumerate(row):
            if operation is None:
                continue
            if operation.action == COMPUTE:
                if operation.first:
                    before = latest.get(operation.slot)
                    previous[operation.slot] = before if operation.shift else None
                    latest[operation.slot] = [(step, block)]
                else:
                    latest[operation.slot].append((step, block))
                reads.setdefault((step, block), 0)
            elif operation.last:
                beta = operation.coefficient if operation.action == FORECAST else 0.0
                for pair in latest[operation.slot]:
                    assert kinds[pair[1]] == kinds[block]
                    now[pair] = 1 + beta
                    reads[pair] += 1
                if operation.action == FORECAST:
                    for pair in previous[operation.slot]:
                        now[pair] = -beta
                        reads[pair] += 1
        added.append(now)
    return added, reads


def meaning(plan: Plan, step: int) -> dict:
    """What a step adds to the stream by the definition of a plan."""
    wanted = {}
    for block in range(plan.shape[1]):
        done = [s for s in range(step) if plan.actions[s, block] == COMPUTE]
        if plan.actions[step, block] == REUSE:
            wanted[done[-1], block] = 1.0
        elif plan.actions[step, block] == FORECAST:
            beta = float(plan.coefficients[step, block])
            wanted[done[-1], block] = 1 + beta
            wanted[done[-2], block] = -beta
    return wanted


@pytest.mark.parametrize("kinds", KINDS.values(), ids=KINDS.keys())
@pytest.mark.parametrize("patterns", [1, 2, 6])
def test_compiled_plans_mean_the_same_and_store_nothing_in_vain(rng, kinds, patterns):
    for _ in range(40):
        plan = random_plan(rng, 9, len(kinds), patterns)
        added, reads = interpret(compile_plan(plan, kinds), kinds)
        for step in range(9):
            assert added[step] == pytest.approx(meaning(plan, step))
        assert all(count > 0 for count in reads.values())


def test_whole_stack_plans_share_one_slot_per_layout():
    plan = Plan.whole_stack(np.array([1, 1, 0, 1], bool), np.array([0, 0, 0.5, 0]), 6)
    for kinds, slots in (("alternating", 2), ("alike", 1), ("in a row", 2)):
        rows = compile_plan(plan, KINDS[kinds])
        assert len({operation.slot for operation in rows[2]}) == slots
    assert rows[3] == [None] * 6


def test_a_computed_block_between_two_reused_ones_keeps_them_apart():
    actions = np.zeros((2, 3))
    actions[1, [0, 2]] = REUSE
    rows = compile_plan(Plan.from_actions(actions), ["block"] * 3)
    assert rows[1][0].slot != rows[1][2].slot
    assert rows[1][1] is None


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ([REUSE, COMPUTE], "step 0, block 1: reuse needs 1"),
        ([COMPUTE, FORECAST], "step 1, block 1: forecast needs 2 .* has 1"),
        ([COMPUTE, 3], "values above 2"),
    ],
)
def test_impossible_plans_are_refused(column, message):
    actions = np.zeros((2, 3), np.uint8)
    actions[:, 1] = column
    with pytest.raises(ValueError, match=message):
        Plan.from_actions(actions)


def test_tables_of_different_shape_are_refused():
    with pytest.raises(ValueError, match="coefficients"):
        Plan(np.zeros((3, 2), np.uint8), np.zeros((2, 3), np.float32))


def test_whole_stack_forecasts_where_a_coefficient_is_given():
    plan = Plan.whole_stack(np.array([1, 1, 0, 0], bool), np.array([9.0, 9.0, 0.5, 0.0]), 2)
    assert plan.actions.tolist() == [[COMPUTE] * 2, [COMPUTE] * 2, [FORECAST] * 2, [REUSE] * 2]
    assert plan.coefficients[:, 0].tolist() == [0, 0, 0.5, 0]


def test_compute_fraction_is_a_share_of_the_cost():
    plan = Plan.from_actions(np.array([[0, 0], [0, 1], [1, 0], [1, 1]]))
    assert plan.shape == (4, 2)
    assert plan.compute_fraction() == pytest.approx(4 / 8)
    assert plan.compute_fraction(np.array([3.0, 1.0])) == pytest.approx((2 * 3 + 2 * 1) / 16)


def test_blocks_cannot_differ_at_the_output():
    actions = np.zeros((3, 2), np.uint8)
    actions[2, 0] = REUSE
    with pytest.raises(ValueError, match="differ"):
        Plan(actions, np.zeros((3, 2), np.float32), at_output=True)
