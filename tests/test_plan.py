import numpy as np
import pytest

from foresight.output_plan import compile_output_plan
from foresight.plan import (
    COMPUTE,
    FORECAST,
    HISTORY,
    REUSE,
    Plan,
    compile_plan,
    plain_weights,
    skipped_runs,
)

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


# Plans at the output.

COMPUTED = np.isin(np.arange(12), (0, 1, 4, 5, 8, 11))


def random_output_plan(rng: np.random.Generator, steps: int = 9) -> Plan:
    """Any weights that the steps can carry out; some steps are plain."""
    computed = rng.random(steps) < 0.5
    computed[0] = True
    weights = rng.normal(size=(steps, HISTORY)) * (rng.random((steps, HISTORY)) < 0.6)
    weights *= np.cumsum(computed)[:, None] > np.arange(HISTORY)
    weights[rng.random(steps) < 0.4] = plain_weights(1)
    return Plan.of_output(computed, weights, num_blocks=2)


def returned(plan: Plan, step: int) -> np.ndarray:
    """Weights of every prediction in what a step of a plan returns."""
    total = np.zeros(plan.shape[0])
    done = [s for s in range(step, -1, -1) if plan.actions[s, 0] == COMPUTE]
    for weight, source in zip(plan.weights[step], done, strict=False):
        total[source] += weight
    return total


def test_compiled_output_plans_mean_the_same_and_keep_nothing_in_vain(rng):
    """Predictions kept are a prefix of those computed last: the oldest of them is read later."""
    nothing = 0
    for _ in range(300):
        plan = random_output_plan(rng)
        held: list[int] = []
        read: set[tuple[int, int]] = set()
        kept: set[tuple[int, int]] = set()
        for step, operation in enumerate(compile_output_plan(plan)):
            assert operation.action == plan.actions[step, 0]
            seen = [step, *held] if operation.action == COMPUTE else held
            value = np.zeros(plan.shape[0])
            for place, weight in enumerate(operation.weights):
                value[seen[place]] += weight
                read.add((seen[place], step))
            held = seen[: operation.keep]
            assert len(held) == operation.keep
            kept |= {(source, step) for source in held}
            assert value == pytest.approx(returned(plan, step))
            assert operation.plain == (plan.weights[step] == plain_weights(1)).all()
            nothing += not any(operation.weights)
        for source, step in kept:
            assert any(s <= source and later > step for s, later in read)
    assert nothing


def test_a_step_that_returns_its_own_prediction_keeps_none():
    computed = np.array([1, 1, 1, 0, 1, 1], bool)
    weights = plain_weights(6)
    weights[3] = 1.5, -0.5, 0
    weights[5] = 1.5, -0.25, -0.25
    plan = Plan.of_output(computed, weights, 2)
    # steps 1 and 2 for step 3; then 2 and 4 for step 5
    assert [step.keep for step in compile_output_plan(plan)] == [0, 1, 2, 1, 2, 0]


def test_betas_at_the_output_weigh_the_last_two_predictions():
    betas = np.where(COMPUTED, 9.0, 0.5)
    betas[[2, 3]] = 0
    plan = Plan.whole_stack(COMPUTED, betas, 3, at_output=True)
    expected = np.where(COMPUTED[:, None], [[1.0, 0, 0]], [[1.5, -0.5, 0]])
    expected[[2, 3]] = 1, 0, 0
    assert plan.at_output
    assert plan.weights.tolist() == expected.tolist()
    assert not plan.coefficients.any()
    skipped = np.where(np.isin(np.arange(12), (2, 3)), REUSE, FORECAST)
    assert plan.actions[:, 1].tolist() == np.where(COMPUTED, COMPUTE, skipped).tolist()


def test_a_plan_that_starts_later_weighs_only_what_it_has():
    weights = plain_weights(12)
    weights[2:] = 1.25, -0.25, 0
    weights[[5, 9]] = 1.5, -0.75, 0.25
    plan = Plan.of_output(COMPUTED, weights, 1)
    later = plan.restarted(1)
    assert later.actions[:4, 0].tolist() == [COMPUTE, REUSE, REUSE, COMPUTE]
    assert later.actions[4:, 0].tolist() == plan.actions[5:, 0].tolist()
    assert (later.weights[:3] == plain_weights(1)).all()
    assert (later.weights[3:] == weights[4:]).all()  # a computed step counts itself
    later = plan.restarted(4)
    assert later.actions[:5, 0].tolist() == [COMPUTE, COMPUTE, FORECAST, FORECAST, COMPUTE]
    assert (later.weights[:2] == plain_weights(1)).all()  # the second asks for three
    assert (later.weights[2:] == weights[6:]).all()
    whole = plan.restarted(0)
    assert (whole.weights == plan.weights).all()
    assert (whole.actions == plan.actions).all()


def test_a_plan_that_starts_at_a_skipped_step_returns_what_it_computes_there():
    """The weights of that step were for a prediction made before it."""
    weights = plain_weights(12)
    weights[2:] = 0.75, 0, 0
    plan = Plan.of_output(COMPUTED, weights, 1)
    later = plan.restarted(2)
    assert later.actions[:3, 0].tolist() == [COMPUTE, FORECAST, COMPUTE]
    assert later.weights[0].tolist() == [1, 0, 0]
    assert (later.weights[1:] == weights[3:]).all()


@pytest.mark.parametrize(
    ("step", "weights"),
    [(0, (1, 0.5, 0)), (1, (1, 0, 0.5)), (3, (0, 0, 1))],
    ids=str,
)
def test_weights_of_what_was_not_computed_by_then_are_refused(step, weights):
    table = plain_weights(12)
    table[step] = weights
    with pytest.raises(ValueError, match=f"step {step} cannot be weighted"):
        Plan.of_output(COMPUTED, table, 2)


def test_weights_in_a_plan_of_blocks_are_refused():
    table, blocks = plain_weights(12), np.zeros((12, 2))
    table[4] = 1, 0, 0.5
    with pytest.raises(ValueError, match="step 4 cannot be weighted"):
        Plan(blocks.astype(np.uint8), blocks.astype(np.float32), weights=table)


def test_tables_of_weights_have_a_row_for_each_step():
    with pytest.raises(ValueError, match=r"`weights` \(11, 3\)"):
        Plan(np.zeros((12, 2), np.uint8), np.zeros((12, 2), np.float32), True, plain_weights(11))


def test_runs_of_skipped_steps_are_those_listed_by_hand():
    """The steps computed before the last, last and next."""
    listed = {
        (0, 3, 4): [(0, 0, 3), (3, 4, 7)],
        (0, 1, 2, 3, 4, 6): [(3, 4, 6)],
        (0, 1, 2, 3, 4, 5, 6): [],
        (0,): [(0, 0, 7)],
    }
    for computed, runs in listed.items():
        assert list(skipped_runs(np.isin(np.arange(7), computed))) == runs


def test_blocks_cannot_differ_at_the_output():
    actions = np.zeros((3, 2), np.uint8)
    actions[2, 0] = REUSE
    with pytest.raises(ValueError, match="differ"):
        Plan(actions, np.zeros((3, 2), np.float32), at_output=True)
