import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from latte_by_hand import (
    NUM_BLOCKS,
    PROMPT,
    STEPS,
    ordered_blocks,
    sample,
    sample_by_hand,
    to_temporal,
    watch_blocks,
    weighted,
)

import foresight
from foresight.config import GenerationConfig, UserError
from foresight.pipeline import generate
from foresight.plan import COMPUTE, FORECAST, REUSE, Plan, plain_weights
from foresight.policies.fixed import FixedPlan

TOLERANCE = {"rtol": 1e-4, "atol": 2e-5}


def compute_all(steps=STEPS):
    return np.zeros((steps, NUM_BLOCKS), np.uint8), np.zeros((steps, NUM_BLOCKS), np.float32)


def random_plan(rng: np.random.Generator, share: float, *, by_block: bool) -> Plan:
    """Any valid plan: reuse after one computed step, forecasts after two."""
    actions, betas = compute_all()
    for block in range(NUM_BLOCKS):
        computed = 1
        for step in range(1, STEPS):
            if rng.random() >= share:
                computed += 1
                continue
            actions[step, block] = FORECAST if computed > 1 and rng.random() < 0.5 else REUSE
            if actions[step, block] == FORECAST:
                betas[step, block] = rng.uniform(-0.5, 1.5)
    if not by_block:
        actions[:], betas[:] = actions[:, :1], betas[:, :1]
    return Plan(actions, betas)


def two_group_plan(rng: np.random.Generator) -> Plan:
    """Spatial blocks under one decision and temporal blocks under another: two fused slots."""
    halves = [random_plan(rng, 0.6, by_block=False) for _ in range(2)]
    actions, betas = compute_all()
    for half, plan in enumerate(halves):
        actions[:, half::2] = plan.actions[:, :1]
        betas[:, half::2] = plan.coefficients[:, :1]
    return Plan(actions, betas)


def run(pipe, plan: Plan, **settings) -> torch.Tensor:
    with foresight.reuse(pipe, FixedPlan(plan)) as session:
        latents = sample(pipe, steps=plan.shape[0], **settings)
    assert (session.report().actions == plan.actions).all()
    return latents


def test_policy_none_and_disable_are_bit_identical_to_the_untouched_pipeline(pipe, uncached):
    foresight.enable(pipe, "none")
    with_hooks = sample(pipe)
    foresight.disable(pipe)
    assert torch.equal(with_hooks, uncached)
    assert torch.equal(sample(pipe), uncached)


def test_disable_after_a_policy_that_reuses_leaves_nothing_behind(pipe, uncached):
    with foresight.reuse(pipe, "static[interval=3]"):
        assert not torch.allclose(sample(pipe), uncached, **TOLERANCE)
    assert "step" not in vars(pipe.scheduler)
    assert "set_timesteps" not in vars(pipe.scheduler)
    assert torch.equal(sample(pipe), uncached)


def test_generated_frames_are_those_of_the_pipeline(pipe, uncached):
    config = GenerationConfig(32, 32, 16, STEPS, 4.0)
    made = generate(pipe, PROMPT, config, seed=0)
    assert torch.equal(made.latents, uncached)
    with torch.no_grad():
        frames = pipe.video_processor.postprocess_video(pipe.decode_latents(uncached, 16), "np")[0]
    assert (made.frames == np.round(frames * 255)).all()
    assert made.denoise_seconds <= made.wall_seconds


def test_batched_prompts_are_bit_identical_under_none(pipe):
    prompts = ["a red circle moves left", "a blue square spins"]
    untouched = sample(pipe, prompt=prompts, steps=3)
    with foresight.reuse(pipe, "none"):
        assert torch.equal(sample(pipe, prompt=prompts, steps=3), untouched)


@pytest.mark.parametrize("kind", ["stack", "two groups", "blocks", "few blocks"])
def test_executed_block_calls_equal_the_plan(pipe, rng, kind):
    plan = {
        "stack": lambda: random_plan(rng, 0.6, by_block=False),
        "two groups": lambda: two_group_plan(rng),
        "blocks": lambda: random_plan(rng, 0.5, by_block=True),
        "few blocks": lambda: random_plan(rng, 0.1, by_block=True),
    }[kind]()
    with watch_blocks(pipe) as calls:
        run(pipe, plan)
    expected = [tuple(pair) for pair in np.argwhere(plan.actions == COMPUTE)]
    assert [(call.step, call.block) for call in calls] == expected
    assert 0 < len(calls) < STEPS * NUM_BLOCKS


@pytest.mark.parametrize("block", [0, 5, 11])
@pytest.mark.parametrize("beta", [0.0, 0.7])
def test_one_block_reused_or_forecast_equals_a_hand_written_loop(pipe, uncached, block, beta):
    actions, betas = compute_all()
    actions[4, block], betas[4, block] = (FORECAST, beta) if beta else (REUSE, 0.0)
    plan = Plan(actions, betas)
    by_hand = sample_by_hand(pipe, plan)
    effect = (by_hand - uncached).abs().max()
    error = (run(pipe, plan) - by_hand).abs().max()
    assert effect > 1e-3
    assert error < 1e-5


def test_the_hand_written_forward_is_latte(pipe, uncached):
    by_hand = sample_by_hand(pipe, Plan(*compute_all()))
    assert torch.allclose(by_hand, uncached, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [(32, 32), (32, 48), (64, 64)], ids=str)
def test_fused_stack_equals_blocks_added_one_by_one(pipe, size):
    """At 64x64 there are as many tokens as frames, so that a mixed-up layout keeps its shape."""
    plan = Plan.whole_stack(
        np.array([1, 1, 0, 1, 0, 0], bool), np.array([0, 0, 0.8, 0, 0, -0.4]), NUM_BLOCKS
    )
    by_hand = sample_by_hand(pipe, plan, size=size)
    torch.testing.assert_close(run(pipe, plan, size=size), by_hand, **TOLERANCE)


def test_any_plan_equals_blocks_added_one_by_one(pipe, rng):
    for plan in (two_group_plan(rng), random_plan(rng, 0.5, by_block=True)):
        torch.testing.assert_close(run(pipe, plan), sample_by_hand(pipe, plan), **TOLERANCE)


def test_a_reused_stack_keeps_one_tensor_per_layout_and_branch_batch(pipe):
    computed = np.arange(STEPS) % 2 == 0
    bytes_kept = []
    for betas in (np.zeros(STEPS), np.where(np.arange(STEPS) > 3, 0.5, 0.0)):
        with foresight.reuse(
            pipe, FixedPlan(Plan.whole_stack(computed, betas, NUM_BLOCKS))
        ) as session:
            sample(pipe)
        bytes_kept.append(session.report().cache_bytes)
    one = 2 * 16 * 4 * 128 * 4  # CFG branches, frames, tokens, width, bytes
    assert bytes_kept == [2 * one, 4 * one]


def test_nothing_is_kept_where_nothing_is_reused(pipe):
    with foresight.reuse(pipe, "none") as session:
        sample(pipe, steps=3)
    assert session.report().cache_bytes == 0


class StopHereError(Exception):
    pass


def stop_at(step: int):
    def callback(pipe, index, timestep, tensors):
        if index == step:
            raise StopHereError
        return tensors

    return callback


@pytest.mark.parametrize("policy", ["static[interval=3]", "foresight[threshold=2,warmup_steps=3]"])
def test_a_generation_after_an_interrupted_one_is_bit_identical_to_a_fresh_one(pipe, policy):
    with foresight.reuse(pipe, policy) as session:
        fresh = sample(pipe)
        actions = session.report().actions
    with foresight.reuse(pipe, policy) as session:
        with pytest.raises(StopHereError):
            sample(pipe, seed=1, prompt="a blue square spins", callback_on_step_end=stop_at(5))
        assert torch.equal(sample(pipe), fresh)
    assert (session.report().actions == actions).all()
    assert (actions != COMPUTE).any()


def test_an_exception_inside_a_block_leaves_no_state(pipe, uncached):
    def fail(*_):
        raise StopHereError

    plan = Plan.whole_stack(np.arange(STEPS) % 2 == 0, np.zeros(STEPS), NUM_BLOCKS)
    fresh = run(pipe, plan)
    with foresight.reuse(pipe, FixedPlan(plan)):
        handle = ordered_blocks(pipe.transformer)[7].attn1.register_forward_hook(fail)
        with pytest.raises(StopHereError):
            sample(pipe, seed=3)
        handle.remove()
        assert torch.equal(sample(pipe), fresh)
    assert torch.equal(sample(pipe), uncached)


def test_generations_of_one_session_do_not_see_each_other(pipe):
    with foresight.reuse(pipe, "static[interval=2]"):
        first = sample(pipe)
        sample(pipe, seed=5, size=(32, 48), steps=6)
        assert torch.equal(sample(pipe), first)


def test_reuse_gives_the_pipeline_back_after_an_exception(pipe, uncached):
    with pytest.raises(StopHereError), foresight.reuse(pipe, "static"):
        sample(pipe, callback_on_step_end=stop_at(6))
    assert torch.equal(sample(pipe), uncached)


def test_enabling_twice_and_disabling_nothing_are_refused(pipe):
    with pytest.raises(UserError, match="no foresight policy is enabled"):
        foresight.disable(pipe)
    with foresight.reuse(pipe, "static[interval=2]") as session:
        with pytest.raises(UserError, match="already enabled"):
            foresight.enable(pipe, "none")
        sample(pipe, steps=6)
        assert session.report().compute_fraction < 1
    with pytest.raises(UserError, match="no foresight policy is enabled"):
        foresight.disable(pipe)


def test_blocks_that_run_in_another_order_are_refused(pipe):
    layers = pipe.transformer.transformer_blocks
    with foresight.reuse(pipe, "none"):
        layers[0], layers[1] = layers[1], layers[0]
        try:
            with pytest.raises(UserError, match="another order"):
                sample(pipe, steps=3)
        finally:
            layers[0], layers[1] = layers[1], layers[0]


def test_report_reads_as_a_table(pipe):
    with foresight.reuse(pipe, "static[interval=2]") as session:
        sample(pipe, steps=6)
    report = session.report()
    assert report.plan is not None
    assert report.denoise_seconds > report.plan_seconds > 0
    lines = str(report).splitlines()
    assert len(lines) == 2 + NUM_BLOCKS
    assert lines[-1].endswith("###.#.")
    assert "66.7%" in lines[0]


def test_layouts_are_inverse_to_each_other():
    tokens = torch.arange(2 * 3 * 5 * 4).reshape(6, 5, 4)
    there = to_temporal(tokens, batch=2)
    assert there.shape == (10, 3, 4)
    assert torch.equal(to_temporal(there, batch=2), tokens)


OUTPUT_COMPUTED = np.isin(np.arange(STEPS), (0, 2, 3, 6))


def output_plan(kind: str) -> Plan:
    """Forecasts alone, or weights of three predictions."""
    betas = np.where(np.arange(STEPS) > 3, np.linspace(0.2, 1.1, STEPS), 0.0)
    plan = Plan.whole_stack(OUTPUT_COMPUTED, betas, NUM_BLOCKS, at_output=True)
    if kind == "forecast":
        return plan
    weights = plan.weights.copy()
    weights[3:7] = (1.6, -0.6, 0), (1.5, -0.7, 0.2), (1.4, -0.9, 0.3), (2.1, -1.5, 0.4)
    weights[7] = 0, 0.5, 0.5
    return Plan.of_output(OUTPUT_COMPUTED, weights, NUM_BLOCKS)


@pytest.mark.parametrize("kind", ["forecast", "predictions"])
def test_a_plan_at_the_output_equals_a_loop_by_hand(pipe, uncached, kind):
    """Steps weigh the outputs that the model was run for last."""
    plan, computed = output_plan(kind), OUTPUT_COMPUTED
    with watch_blocks(pipe) as calls:
        latents = run(pipe, plan)
    assert len(calls) == computed.sum() * NUM_BLOCKS

    original, seen = pipe.transformer.forward, []
    steps = iter(range(STEPS))

    def by_hand(*, hidden_states, **others):
        step = next(steps)
        if computed[step]:
            seen.insert(0, original(hidden_states=hidden_states, **others)[0])
        return (weighted(plan.weights[step].tolist(), seen),)

    pipe.transformer.forward = by_hand
    try:
        expected = sample(pipe)
    finally:
        pipe.transformer.forward = original
    torch.testing.assert_close(latents, expected, **TOLERANCE)
    assert (latents - uncached).abs().max() > 0.01


def test_weights_that_are_plain_change_no_bit(pipe, uncached):
    plan = Plan.of_output(np.ones(STEPS, bool), plain_weights(STEPS), NUM_BLOCKS)
    assert torch.equal(run(pipe, plan), uncached)
    computed = np.arange(STEPS) < 6
    weights = plain_weights(STEPS)
    weights[6:] = 1.3, -0.3, 0.1
    latents = []

    def watch(pipe, index, timestep, tensors):
        latents.append(tensors["latents"].clone())
        return tensors

    run(pipe, Plan.of_output(computed, weights, NUM_BLOCKS), callback_on_step_end=watch)
    sample(pipe, callback_on_step_end=watch)
    same = [torch.equal(latents[step], latents[STEPS + step]) for step in range(STEPS)]
    assert same == computed.tolist()


def test_predictions_that_the_pipeline_changes_in_place_are_kept_as_they_were(pipe):
    """A pipeline may do as it likes with what a step returned."""

    def spoil(module, args, output):
        taken = output[0].clone()
        output[0].fill_(7.0)
        return (taken,)

    plan = output_plan("predictions")
    expected = run(pipe, plan)
    handle = pipe.transformer.register_forward_hook(spoil)
    try:
        assert torch.equal(run(pipe, plan), expected)
    finally:
        handle.remove()


@pytest.mark.parametrize("variance", ["fixed_small", "learned_range"])
def test_a_plan_at_the_output_keeps_two_latents(pipe, variance, monkeypatch):
    """Latte predicts a variance behind them, which only some schedulers would read."""
    scheduler = DDPMScheduler.from_config(pipe.scheduler.config, variance_type=variance)
    monkeypatch.setattr(pipe, "scheduler", scheduler)
    betas = np.full(STEPS, 0.5)
    betas[1] = 0  # one computed step is not enough to forecast from
    computed = np.arange(STEPS) % 2 == 0
    with foresight.reuse(
        pipe, FixedPlan(Plan.whole_stack(computed, betas, NUM_BLOCKS, at_output=True))
    ) as session:
        latents = sample(pipe)
    branches, halves = 2, 2 if variance == "learned_range" else 1  # CFG in one batch
    assert session.report().cache_bytes == 2 * branches * halves * latents.nbytes
