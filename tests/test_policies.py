import copy
import dataclasses
import itertools
import re
import time

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from latte_by_hand import NUM_BLOCKS, PROMPT, STEPS, sample, watch_blocks
from safetensors.torch import load_file, save_file

import foresight
from foresight.config import GenerationConfig, UserError
from foresight.fingerprint import fingerprint
from foresight.models.architecture import TEXT_WIDTH
from foresight.pipeline import generate
from foresight.plan import COMPUTE, HISTORY, REUSE, Plan, plain_weights
from foresight.planner import shortest_paths
from foresight.policies import BUILT_IN, load_policy, sweep
from foresight.policies import search as search_module
from foresight.policies.fixed import FewerStepsPolicy, RandomPolicy, StaticPolicy, warmup_length
from foresight.policies.foresight import ForesightPolicy
from foresight.policies.learned import LearnedPolicy
from foresight.policies.multistep import carry_out, local_energies
from foresight.policies.network import ReuseModel, config_features
from foresight.policies.promise import QualityPromise
from foresight.policies.reaction import gains_after
from foresight.policies.search import stretched
from foresight.policies.trajectory import resampled
from foresight.solver import Solver, euler_solver

# Foresight: the paper's rule, with steps counted from 1 as the paper counts them.


def mean_squared_error(x: list[float], y: list[float]) -> float:
    return sum((a - b) ** 2 for a, b in zip(x, y, strict=True)) / len(x)


def simulate(feature, *, steps: int, warmup: int, interval: int, threshold: float) -> list[int]:
    """What one block does: 0 computed, 1 reused. `feature(t)` is what it gives if computed at t."""
    actions, cache, scale, change = [], None, 0.0, None
    for t in range(1, steps + 1):
        may_reuse = t > warmup and (t - warmup) % interval != 0
        if may_reuse and change <= threshold * scale:
            actions.append(REUSE)
            continue
        x = feature(t)
        if cache is not None:
            change = mean_squared_error(x, cache)
            if warmup - 2 <= t <= warmup:
                scale += 10.0 ** -(warmup - t) * change
        cache = x
        actions.append(COMPUTE)
    return actions


@pytest.mark.parametrize("warmup", [3, 4, 6])
@pytest.mark.parametrize("interval", [1, 2, 3, 5])
def test_foresight_decides_as_the_paper_on_made_up_features(generation, rng, warmup, interval):
    steps, branches, blocks = 24, 2, 4
    generation = dataclasses.replace(
        generation, sigmas=np.linspace(1, 0, steps), block_names=("block",) * blocks
    )
    pace = rng.lognormal(sigma=0.3, size=(branches, blocks, steps, 1))
    features = (pace * rng.normal(size=(branches, blocks, steps, 8))).cumsum(axis=2)
    features = features.astype(np.float32)
    policy = ForesightPolicy(threshold=0.9, recompute_interval=interval, warmup_steps=warmup)
    controller = policy.begin(generation)
    actions = np.zeros((branches, blocks, steps), int)
    cache = {}
    for step in range(steps):
        for branch, block in np.ndindex(branches, blocks):
            if controller.reuses(step, branch, block):
                actions[branch, block, step] = REUSE
                continue
            output = torch.from_numpy(features[branch, block, step])
            controller.observe(step, branch, block, output, cache.get((branch, block)))
            cache[branch, block] = output
    for branch, block in np.ndindex(branches, blocks):
        series = features[branch, block].tolist()
        expected = simulate(
            lambda t, series=series: series[t - 1],
            steps=steps,
            warmup=warmup,
            interval=interval,
            threshold=0.9,
        )
        assert actions[branch, block].tolist() == expected
    if interval > 1:
        assert 0 < actions[:, :, warmup:].mean() < (interval - 1) / interval


@pytest.mark.parametrize("cache", ["output", "residual"])
@pytest.mark.parametrize(("interval", "warmup"), [(2, 3), (4, 5)])
def test_foresight_decides_as_the_paper_on_a_pipeline(pipe, cache, interval, warmup):
    steps = 14
    policy = ForesightPolicy(
        threshold=1.0, recompute_interval=interval, warmup_steps=warmup, cache=cache
    )
    with watch_blocks(pipe) as calls, foresight.reuse(pipe, policy) as session:
        sample(pipe, steps=steps)
    actions = session.report().actions
    returned = {
        (call.block, call.step + 1): call.output if cache == "output" else call.residual
        for call in calls
    }
    for block in range(NUM_BLOCKS):
        expected = simulate(
            lambda t, block=block: returned[block, t].flatten().tolist(),
            steps=steps,
            warmup=warmup,
            interval=interval,
            threshold=1.0,
        )
        assert actions[:, block].tolist() == expected
    assert len(calls) == (actions == COMPUTE).sum()
    assert (actions == REUSE).sum() > 0


@pytest.mark.parametrize("cache", ["output", "residual"])
def test_a_reused_output_freezes_the_stream_and_a_reused_residual_does_not(pipe, cache):
    """With a gate that never closes, only the warm-up and the recomputed steps run blocks."""
    policy = ForesightPolicy(threshold=1e9, recompute_interval=3, warmup_steps=3, cache=cache)
    left = []  # what the last block returns, by step
    with foresight.reuse(pipe, policy) as session:
        handle = pipe.transformer.norm_out.register_forward_pre_hook(
            lambda _, args: left.append(args[0].clone())
        )
        sample(pipe)
        handle.remove()
    reused = np.flatnonzero((session.report().actions == REUSE).all(axis=1))
    assert reused.tolist() == [3, 4, 6, 7, 9]
    for step, source in {3: 2, 4: 2, 6: 5, 7: 5, 9: 8}.items():
        assert torch.equal(left[step], left[source]) == (cache == "output")


def test_foresight_needs_three_steps_of_warm_up():
    assert warmup_length(None, 50) == 8
    assert warmup_length(None, 10) == 3
    assert warmup_length(1, 50) == 3
    assert warmup_length(7, 50) == 7
    assert warmup_length(7, 2) == 2


# Policies that do not look at features.


def test_static_computes_every_interval_after_the_warm_up(generation):
    plan = StaticPolicy(interval=3, warmup_steps=3).begin(generation)
    assert plan.actions[:, 0].tolist() == [0, 0, 0, 1, 1, 0, 1, 1, 0, 1]
    assert (plan.actions == plan.actions[:, :1]).all()
    assert StaticPolicy(interval=1).begin(generation).compute_fraction() == 1


def test_random_reuses_its_share_and_repeats(generation):
    longer = dataclasses.replace(generation, sigmas=np.linspace(1, 0, 200))
    plan = RandomPolicy(share=0.3, warmup_steps=5).begin(longer)
    assert (plan.actions[:5] == COMPUTE).all()
    assert (plan.actions[5:] == REUSE).mean() == pytest.approx(0.3, abs=0.04)
    again = RandomPolicy(share=0.3, warmup_steps=5).begin(longer)
    assert (again.actions == plan.actions).all()
    other = RandomPolicy(share=0.3, seed=1, warmup_steps=5).begin(longer)
    assert (other.actions != plan.actions).any()


def test_fewer_steps_is_the_plain_model_with_fewer_steps(pipe):
    config = GenerationConfig(32, 32, 16, STEPS, 4.0)
    scheduler = pipe.scheduler
    made = generate(pipe, PROMPT, config, seed=0, policy=FewerStepsPolicy(fraction=0.4))
    assert made.report.actions.shape == (4, NUM_BLOCKS)
    assert torch.equal(made.latents, sample(pipe, steps=4))
    assert pipe.scheduler is scheduler


def test_the_second_order_solver_comes_nearer_to_many_steps(pipe):
    """A short trajectory of a smooth model: DPM-Solver++ 2M must beat DDIM at equal steps."""
    truth = sample(pipe, steps=60)
    config = GenerationConfig(32, 32, 16, 20, 4.0)
    scheduler, errors = pipe.scheduler, {}
    for solver in ("same", "dpm++"):
        policy = FewerStepsPolicy(fraction=0.5, solver=solver)
        made = generate(pipe, PROMPT, config, seed=0, policy=policy)
        assert made.report.actions.shape[0] == 10
        errors[solver] = float((made.latents - truth).square().mean())
    assert pipe.scheduler is scheduler
    assert errors["dpm++"] < errors["same"]


# Names.


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("none", BUILT_IN["none"]()),
        ("static", StaticPolicy()),
        ("static[interval=4]", StaticPolicy(interval=4)),
        ("random[share=0.25, seed=3]", RandomPolicy(share=0.25, seed=3)),
        ("fewer-steps[fraction=0.5,solver=dpm++]", FewerStepsPolicy(0.5, "dpm++")),
        (
            "foresight[warmup_steps=5,recompute_interval=2,threshold=0.5]",
            ForesightPolicy(threshold=0.5, recompute_interval=2, warmup_steps=5),
        ),
        ("foresight[cache=residual]", ForesightPolicy(cache="residual")),
    ],
)
def test_built_in_policies_by_name(spec, expected):
    assert load_policy(spec) == expected


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("magic", "unknown policy 'magic'; choose from none, static"),
        ("static[interval=4", "closing"),
        ("static[interval]", "name=value"),
        ("static[gap=2]", "no option 'gap'; its options: interval, warmup_steps"),
        ("static[interval=often]", "not of the right type"),
        ("static[interval=true]", "not of the right type"),
        ("static[interval=0]", "`interval` must be at least 1"),
        ("random[share=1.5]", r"`share` must be in \[0, 1\]"),
        ("fewer-steps[fraction=0]", "`fraction`"),
        ("fewer-steps[solver=magic]", "`solver`"),
        ("foresight[threshold=-1]", "`threshold`"),
        ("foresight[recompute_interval=0]", "`recompute_interval`"),
        ("foresight[cache=all]", "`cache`"),
        ("none[x=1]", "its options: none"),
    ],
)
def test_bad_names_and_options_are_refused(spec, message):
    with pytest.raises(UserError, match=message):
        load_policy(spec)


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_sweep_covers_a_policy_s_own_knob(name):
    policies = sweep(name)
    assert all(policy.name == name for policy in policies)
    assert len({policy.setting for policy in policies}) == len(policies)
    assert len(policies) >= 5 or name == "none"


def test_policies_without_a_budget_refuse_a_speed_up(pipe):
    with pytest.raises(UserError, match="static takes no speed-up"):
        foresight.enable(pipe, "static", speedup=2.0)
    with pytest.raises(UserError, match="no foresight policy is enabled"):
        foresight.disable(pipe)


# The trained policy, with random weights: what it decides is not judged here, only that it may.

COSTS = {"block_seconds": [0.002, 0.001] * 6, "overhead_seconds": 0.001, "skip_seconds": 0.0004}


@pytest.fixture
def learned(pipe) -> LearnedPolicy:
    torch.manual_seed(0)
    model = ReuseModel(NUM_BLOCKS, TEXT_WIDTH, num_levels=8, profiled_steps=[8])
    grid = np.linspace(1, 0, 8)
    model.paths[0].fit(grid, np.eye(8), euler_solver(grid), guidance_scale=4.0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    promise = QualityPromise(offset=10.0, slope=-4.3, misses=np.linspace(-4, 4, 20).tolist())
    return LearnedPolicy(model, fingerprint(pipe), COSTS, promise)


def seconds(plan: Plan) -> float:
    computed = plan.actions == COMPUTE
    skipping = (~computed.all(axis=1)).sum()
    blocks = (computed * COSTS["block_seconds"]).sum()
    return blocks + skipping * COSTS["skip_seconds"] + len(computed) * COSTS["overhead_seconds"]


@pytest.mark.parametrize("steps", [10, 30, 50])
def test_a_learned_plan_comes_as_close_to_its_budget_as_whole_steps_allow(
    learned, generation, steps
):
    generation = dataclasses.replace(generation, sigmas=np.linspace(0.99, 0.05, steps))
    full = seconds(Plan.from_actions(np.zeros((steps, NUM_BLOCKS))))
    assert learned.at(1.0).begin(generation).compute_fraction() == 1
    for speedup in (1.25, 2.0, 3.0, 4.5):
        plan = learned.at(speedup).begin(generation)
        spent, budget = seconds(plan), full / speedup
        step = sum(COSTS["block_seconds"]) - COSTS["skip_seconds"]
        assert abs(spent - budget) <= step / 2 + 1e-9
        assert (plan.weights[plan.actions[:, 0] == REUSE] == plain_weights(1)).all()
        assert not plan.coefficients.any()


@pytest.fixture
def solved(generation):
    """A generation whose solver may be asked."""
    scheduler = DDIMScheduler(prediction_type="v_prediction", clip_sample=False)
    scheduler.set_timesteps(STEPS)
    return dataclasses.replace(generation, scheduler=scheduler)


@pytest.mark.parametrize("known", [True, False])
def test_computed_steps_correct_where_the_solver_s_response_is_known(
    learned, generation, solved, known
):
    plan = learned.at(2.0).begin(solved if known else generation)
    computed = plan.actions[:, 0] == COMPUTE
    after_a_run = computed & (np.cumsum(~computed) > 0)
    assert after_a_run.any()
    weighted = (plan.weights != plain_weights(1)).any(axis=1)
    assert (weighted[computed] == (after_a_run & known)[computed]).all()


def walk_kernel(rng: np.random.Generator, levels: int) -> tuple[np.ndarray, torch.Tensor]:
    """Outputs (M, 30) that wander, and inner products (1 + N, M, M) of them and all residuals."""
    walks = rng.normal(size=(1 + NUM_BLOCKS, levels, 30)).cumsum(axis=1)
    return walks[0], torch.from_numpy(walks @ walks.swapaxes(1, 2)).float()


def flow_solver(sigmas: np.ndarray) -> Solver:
    return euler_solver(sigmas)._replace(decay=np.ones(len(sigmas)), known=True)


def fit_outputs(model: ReuseModel, kernel: torch.Tensor, grid: np.ndarray, solver: Solver) -> None:
    """Have a model know these inner products (1 + N, M, M), all outputs at one guidance scale."""
    model.fit_kernel(torch.from_numpy(grid), kernel)
    model.paths[0].fit(grid, kernel[0].double().numpy(), solver, guidance_scale=4.0)


@pytest.fixture
def wandering(rng) -> tuple[ReuseModel, np.ndarray]:
    """An untrained network that was profiled under flow matching, and its outputs there."""
    model, grid = ReuseModel(NUM_BLOCKS, TEXT_WIDTH, 9, [9]), np.linspace(1, 0.1, 9)
    walk, kernel = walk_kernel(rng, 9)
    fit_outputs(model, kernel, grid, flow_solver(grid))
    model.reaction.gain[:2] = torch.tensor([-0.5, 0.4])
    model.reaction.share[0] = 0.6
    model.reaction.lasting[:2] = torch.tensor([-1.0, 0.5])
    model.reaction.known[0] = torch.tensor([-2.0, 2.0])
    return model.requires_grad_(False), walk


def test_outputs_are_expected_where_they_were_profiled(wandering, rng):
    """Interpolated linearly between noise levels, where nothing is known of the solver."""
    model, walk = wandering
    sigmas, grid = np.sort(rng.uniform(0.12, 0.98, 14))[::-1].copy(), model.grid.numpy()
    found = model.path(sigmas, euler_solver(sigmas), 4.0)
    between = [np.interp(sigmas[::-1], grid[::-1], column[::-1])[::-1] for column in walk.T]
    vectors = np.stack(between, axis=1)
    assert found @ found.T == pytest.approx(vectors @ vectors.T, rel=1e-4, abs=1e-3)


def test_outputs_of_flow_matching_are_resampled_by_the_reaction(wandering):
    """As if all of its spread lasted."""
    model, walk = wandering
    grid, sigmas = np.linspace(1, 0.1, 9), np.linspace(0.95, 0.15, 5)
    solver = flow_solver(sigmas)
    found = model.path(sigmas, solver, 4.0)
    reaction = model.reaction.at(sigmas, 4.0).cautious()
    expected = resampled(walk @ walk.T, grid, flow_solver(grid), sigmas, solver, reaction)
    assert found @ found.T == pytest.approx(expected @ expected.T, rel=1e-4, abs=1e-3)
    plain = model.path(sigmas, euler_solver(sigmas), 4.0)
    assert np.abs(found @ found.T - plain @ plain.T).max() > 0.1


@pytest.mark.parametrize("tolerance", [0.4, 0.8])
def test_an_untrained_network_holds_safe_what_its_kernel_says(rng, tolerance):
    """Where a residual changes by at most so much of its own norm, at levels that it knows."""
    model = ReuseModel(NUM_BLOCKS, TEXT_WIDTH, 9, [9], tolerance=tolerance).requires_grad_(False)
    walks = rng.normal(size=(1 + NUM_BLOCKS, 9, 30)).cumsum(axis=1)
    model.fit_kernel(torch.linspace(1, 0.1, 9), torch.from_numpy(walks @ walks.swapaxes(1, 2)))
    places = [(s, a, max(a - 1, 0)) for s in range(1, 9) for a in range(s)]
    levels = model.grid[torch.tensor(places)].repeat(len(walks), 1)
    entity = torch.arange(len(walks)).repeat_interleave(len(places))
    odds = model(entity, levels, torch.randn(1, 4 + 5).expand(len(entity), -1))["safe"]
    change = [np.linalg.norm(walk[s] - walk[a]) for walk in walks for s, a, _ in places]
    own = [np.linalg.norm(walk[s]) for walk in walks for s, *_ in places]
    expected = 4 * np.log(tolerance * np.array(own) / change)
    assert odds.numpy() == pytest.approx(expected, abs=1e-3)
    assert (expected > 0).any()
    assert (expected < 0).any()


def test_all_prompts_have_the_mean_prompt_s_pace_until_prompts_matter(wandering):
    """Whatever the network says of all alike is no prompt's own."""
    model, _ = wandering
    sigmas = torch.linspace(0.98, 0.05, 14)
    asked = sigmas, torch.randn(1, TEXT_WIDTH), torch.randn(1, 5)
    for constant in (0.0, 1.0):
        model.trunk[-1].bias[1] = constant  # of the second answer, the risk of reuse
        assert not model.log_pace(*asked).any()
    torch.nn.init.normal_(model.trunk[-1].weight)
    assert model.log_pace(*asked)[1:].all()


@pytest.fixture
def paced(learned, rng) -> ReuseModel:
    """A network that has a mean prompt and a kernel."""
    grid = np.linspace(1, 0, 8)
    fit_outputs(learned.model, walk_kernel(rng, 8)[1], grid, flow_solver(grid))
    learned.model.fit_inputs(1 + torch.randn(20, TEXT_WIDTH), torch.randn(20, 5))
    return learned.model.requires_grad_(False)


def test_the_pace_is_the_ratio_to_changes_of_the_mean_prompt(paced):
    """By the network's answers for reuse from each step to the next, same configuration."""
    sigmas = torch.linspace(0.97, 0.04, 12)
    prompts, features = 1 + torch.randn(2, 1, TEXT_WIDTH), torch.randn(2, 1, 5)
    mean = paced.prompt_mean[None]
    for prompt, each in itertools.product(prompts, features):
        found = paced.log_pace(sigmas, prompt, each)
        assert found.shape == (12,)
        assert found[0] == 0  # there is no step before the first
        for step in range(11):
            levels = sigmas[[step + 1, step, max(step - 1, 0)]][None]
            expected, usual = (
                paced(torch.tensor([0]), levels, paced.context(who, each))["log_reuse"].item()
                for who in (prompt, mean)
            )
            assert found[step + 1].item() == pytest.approx(expected - usual, abs=1e-4)
    first, second = (paced.log_pace(sigmas, prompt, features[0]) for prompt in prompts)
    assert not torch.allclose(first, second, rtol=0.01)


def test_a_pace_counts_by_as_much_as_it_is_trusted(paced, rng):
    mean, sigmas = rng.normal(size=(14, 7)), np.linspace(0.97, 0.04, 14)
    asked = sigmas, torch.randn(1, TEXT_WIDTH), torch.randn(1, 5)
    whole = paced.log_pace(torch.from_numpy(sigmas).float(), *asked[1:])
    for trust in (0.0, 0.3):
        paced.pace_trust.fill_(trust)
        found = paced.log_pace(torch.from_numpy(sigmas).float(), *asked[1:])
        assert found.numpy() == pytest.approx(trust * whole.numpy())
        if not trust:
            assert stretched(mean, paced, *asked) == pytest.approx(mean)


def test_the_mean_prompt_goes_along_the_mean_path(paced, rng):
    """In every configuration: what profiling showed on average needs no correction."""
    mean, sigmas = rng.normal(size=(14, 7)), np.linspace(0.97, 0.04, 14)
    for features in torch.randn(3, 1, 5):
        found = stretched(mean, paced, sigmas, paced.prompt_mean[None], features)
        assert found == pytest.approx(mean)


def test_a_generation_goes_along_the_mean_path_at_its_own_pace(learned, generation, rng):
    """Each change as much longer as its energy is larger; the first prediction stays."""
    mean, sigmas = rng.normal(size=(STEPS, 7)), generation.sigmas
    prompt = torch.randn(1, TEXT_WIDTH)
    features = torch.tensor([config_features(generation.config)])
    found = stretched(mean, learned.model, sigmas, prompt, features)
    with torch.no_grad():
        pace = learned.model.log_pace(torch.from_numpy(sigmas).float(), prompt, features).numpy()
    assert found[0] == pytest.approx(mean[0])
    for step in range(1, STEPS):
        moved, usual = found[step] - found[step - 1], mean[step] - mean[step - 1]
        assert moved == pytest.approx(usual * np.exp(pace[step]) ** 0.5)
    assert np.abs(pace).max() > 0.01


# Which steps are computed, and how they are weighted.


@pytest.fixture
def taught(learned, rng) -> LearnedPolicy:
    """One that knows a kernel of its own solver's trajectory, and how the model answers errors."""
    grid = np.linspace(0.99, 0.05, 8)
    fit_outputs(learned.model, walk_kernel(rng, 8)[1], grid, euler_solver(grid))
    learned.model.reaction.gain[:2] = torch.tensor([0.2, -0.6])
    learned.model.reaction.share[0] = 0.4
    learned.model.reaction.lasting[:2] = torch.tensor([-0.8, 0.6])
    learned.model.reaction.known[0] = torch.tensor([-2.0, 1.0])
    return learned


def one_step_moves(computed: np.ndarray):
    """All choices with one computed step, but not step 0, up to two earlier or later."""
    for origin, target in itertools.permutations(range(1, len(computed)), 2):
        if abs(origin - target) <= 2 and computed[origin] and not computed[target]:
            other = computed.copy()
            other[[origin, target]] = False, True
            yield other


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize(
    ("speedup", "history"), [(1.5, HISTORY), (2.5, HISTORY), (4.0, HISTORY), (1.5, 1), (2.5, 2)]
)
def test_no_small_move_of_a_computed_step_is_better_for_the_mean_prompt(
    taught, generation, solved, known, speedup, history
):
    """As if all of the reaction's spread lasted, with as many predictions as may be kept.

    And nothing is lost to the choice that adds up what runs of skipped steps leave.
    """
    mean = taught.model.prompt_mean.numpy()
    generation = dataclasses.replace(
        solved if known else generation, prompt_embedding=mean, prediction_bytes=100
    )
    solver = generation.solver
    reaction = taught.model.reaction.at(generation.sigmas, 4.0).cautious()
    path = taught.model.path(generation.sigmas, solver, 4.0)
    policy = taught.at(speedup)
    if history < HISTORY:
        policy = policy.within(100 * history + 99)
    plan = policy.begin(generation)
    computed = plan.actions[:, 0] == COMPUTE
    damage = local_energies(path, solver, STEPS, history=history) * gains_after(solver, reaction)
    *_, (_, start) = shortest_paths(damage, int(computed.sum()))
    choices = np.stack([computed, start, *one_step_moves(computed)])
    weights, (chosen, begun, *moved) = carry_out(path, solver, reaction, choices, history=history)
    assert chosen <= begun
    assert chosen <= min(moved) / (1 - 2e-3)
    assert plan.weights == pytest.approx(weights[0], rel=1e-6, abs=1e-6)
    assert plan.weights[:, : min(history, computed.sum())].any(axis=0).all()
    assert not plan.weights[:, history:].any()


@pytest.mark.parametrize("known", [True, False])
def test_other_prompts_have_the_steps_of_the_mean_prompt_and_weights_of_their_own(
    taught, generation, solved, known
):
    """Those best for their own paths, as if all of the reaction's spread lasted."""
    generation = solved if known else generation
    solver = generation.solver
    reaction = taught.model.reaction.at(generation.sigmas, 4.0).cautious()
    mean = dataclasses.replace(generation, prompt_embedding=taught.model.prompt_mean.numpy())
    prompts = np.random.default_rng(1).normal(size=(4, TEXT_WIDTH))
    for prompt, speedup in itertools.product(prompts, (1.5, 2.5, 4.0)):
        asked = dataclasses.replace(generation, prompt_embedding=prompt)
        plan, usual = (taught.at(speedup).begin(each) for each in (asked, mean))
        computed, expected = (each.actions[:, 0] == COMPUTE for each in (plan, usual))
        assert (computed == expected).all()
        path = taught.search.path(asked)
        (weights,), _ = carry_out(path, solver, reaction, computed[None])
        assert plan.weights == pytest.approx(weights, rel=1e-6, abs=1e-6)


def test_prompts_differ_in_weights_and_share_the_search(taught, solved, monkeypatch):
    searched, refine = [], search_module.refine

    def counted(start, energies):
        searched.append(start)
        return refine(start, energies)

    monkeypatch.setattr(search_module, "refine", counted)
    prompts = np.random.default_rng(1).normal(size=(3, TEXT_WIDTH))
    plans = [
        taught.at(2.0).begin(dataclasses.replace(solved, prompt_embedding=prompt))
        for prompt in prompts
    ]
    assert len(searched) == 1
    assert (plans[0].actions == plans[1].actions).all()
    assert not np.allclose(plans[0].weights, plans[1].weights, atol=1e-3)
    taught.at(3.0).begin(solved)
    assert len(searched) == 2
    taught.at(2.0).begin(dataclasses.replace(solved, sigmas=solved.sigmas**1.1))
    assert len(searched) == 3
    taught.at(2.0).begin(dataclasses.replace(solved, scheduler=None))
    assert len(searched) == 4
    again = taught.at(2.0).begin(dataclasses.replace(solved, prompt_embedding=prompts[0]))
    assert len(searched) == 4
    assert (again.weights == plans[0].weights).all()


def test_a_learned_plan_spends_its_budget_on_runs_longer_than_usual(learned, generation):
    generation = dataclasses.replace(generation, sigmas=np.linspace(0.99, 0.05, 60))
    learned.costs = {"block_seconds": [1.0], "overhead_seconds": 0.01, "skip_seconds": 0.0}
    plan = learned.at(20.0).begin(generation)
    assert (plan.actions[:, 0] == COMPUTE).sum() == 2


def test_a_saved_policy_plans_the_same(learned, solved, rng, tmp_path):
    grid = np.linspace(1, 0, 8)
    fit_outputs(learned.model, walk_kernel(rng, 8)[1], grid, flow_solver(grid))
    learned.save_pretrained(tmp_path / "mine")
    loaded = load_policy(tmp_path / "mine")
    assert isinstance(loaded, LearnedPolicy)
    assert loaded.name == "mine"
    assert loaded.fingerprint == learned.fingerprint
    assert loaded.promise == learned.promise
    for ask in (lambda p: p.at(1.5), lambda p: p.at(4.0), lambda p: p.reaching(30)):
        plan, expected = ask(loaded).begin(solved), ask(learned).begin(solved)
        assert (plan.actions == expected.actions).all()
        assert (plan.weights == expected.weights).all()


def test_weights_of_another_version_are_refused(learned, tmp_path):
    """Not half loaded: a policy would then plan with numbers that nobody trained."""
    learned.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    del stored["reaction.gain"]
    save_file(stored, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="damaged"):
        LearnedPolicy.from_pretrained(tmp_path)


def test_a_quality_is_reached_by_the_fastest_plan_that_is_good_enough(taught, solved):
    """Against the planner itself: every budget in turn, its energy as this prompt has it.

    Plans are made as if all of the reaction's spread lasted, and judged by what really does.
    """
    taught.costs = {"block_seconds": [1.0], "overhead_seconds": 0.0, "skip_seconds": 0.0}
    solver, counts = solved.solver, []
    reaction, own = taught.model.reaction.at(solved.sigmas, 4.0), taught.search.path(solved)
    plans = [taught.at(STEPS / count).begin(solved) for count in range(1, STEPS + 1)]
    choices = np.stack([plan.actions[:, 0] == COMPUTE for plan in plans])
    weights = np.stack([plan.weights for plan in plans])
    energies, cautious = (
        carry_out(own, solver, each, choices, weights)[1]
        for each in (reaction, reaction.cautious())
    )
    assert np.abs(energies / (cautious + 1e-12) - 1).max() > 0.1
    for quality in (5, 12, 18, 25, 60, 100):
        plan = taught.reaching(quality).begin(solved)
        count = int((plan.actions[:, 0] == COMPUTE).sum())
        counts.append(count)
        most = np.exp(taught.promise.highest_log_damage(quality, 0.9))
        assert energies[count - 1] <= most
        assert (energies[: count - 1] > most).all()
        assert (plan.actions == plans[count - 1].actions).all()
        assert (plan.weights == plans[count - 1].weights).all()
    assert counts == sorted(counts)
    assert counts[0] < counts[-1] == STEPS
    assert len(set(counts)) > 3


def test_a_quality_beyond_all_plans_computes_every_step(taught, solved):
    """Also where the promise's line is so flat that it allows no damage worth the name."""
    taught.promise = dataclasses.replace(taught.promise, slope=-1.0)
    plan = taught.reaching(100).begin(solved)
    assert plan.compute_fraction() == 1


@pytest.mark.parametrize("bound", [None, 300, 10**12])
def test_with_room_for_all_predictions_a_bound_changes_nothing(taught, solved, bound):
    """Nor where nobody knows what a prediction takes."""
    for policy, size in ((taught.at(2.0), 100), (taught.reaching(18), 100), (taught, 0)):
        asked = dataclasses.replace(solved, prediction_bytes=size)
        expected = policy.begin(solved)
        plan = (policy if bound is None else policy.within(bound if size else 1)).begin(asked)
        assert (plan.actions == expected.actions).all()
        assert (plan.weights == expected.weights).all()
        assert plan.weights.any(axis=0).all()


def test_a_bound_outlasts_what_else_is_asked_and_is_named(learned):
    for policy in (learned.within(5).at(3.0), learned.at(3.0).within(5)):
        assert policy.setting == "speedup=3,max_cache_bytes=5"
    assert learned.within(5).reaching(18).setting.endswith(",max_cache_bytes=5")
    assert learned.setting == "speedup=2"


def test_a_bound_below_one_prediction_is_refused(learned, solved):
    asked = dataclasses.replace(solved, prediction_bytes=4321)
    with pytest.raises(UserError, match=r"max_cache_bytes=4320 is too little: .* takes 4321"):
        learned.within(4320).begin(asked)
    assert not learned.within(4321).begin(asked).weights[:, 1:].any()


@pytest.mark.parametrize("spec", ["static", "none", "foresight"])
def test_other_policies_refuse_a_bound(spec):
    with pytest.raises(UserError, match=f"{spec} cannot be held to 7 cached bytes"):
        load_policy(spec).within(7)


def test_plans_follow_the_guidance_scale(taught, solved):
    """Where the reaction does: each as a policy plans that was asked for nothing before."""
    taught.model.reaction.gain[2] = 1.5
    taught.model.reaction.known[1] = torch.tensor([2.0, 8.0]).log()
    fresh, plans = copy.deepcopy(taught), []
    for scale in (2.0, 8.0, 2.0):
        config = dataclasses.replace(solved.config, guidance_scale=scale)
        asked = dataclasses.replace(solved, config=config)
        plans.append(taught.at(2.0).begin(asked))
        alone = copy.deepcopy(fresh).at(2.0).begin(asked)
        assert (plans[-1].actions == alone.actions).all()
        assert (plans[-1].weights == alone.weights).all()
        expected = fresh.model.reaction.at(solved.sigmas, scale)
        assert np.stack(taught.search.reaction(asked)) == pytest.approx(np.stack(expected))
    assert (plans[0].weights == plans[2].weights).all()
    assert (plans[0].actions != plans[1].actions).any()


def test_more_confidence_costs_more_steps(learned, generation):
    counts = [
        (learned.reaching(18, share).begin(generation).actions[:, 0] == COMPUTE).sum()
        for share in (0.5, 0.9, 0.95)
    ]
    assert counts == sorted(counts)
    assert counts[0] < counts[-1]


def test_conformal_bounds_hold_as_often_as_asked():
    """Exchangeable misses: over many draws the promised share is met, and not by far too much."""
    rng = np.random.default_rng(0)
    for share in (0.5, 0.8, 0.9):
        met = []
        for _ in range(4000):
            misses = rng.normal(size=40)
            promise = QualityPromise(0.0, -4.0, sorted(misses[:39].tolist()))
            damage = promise.highest_log_damage(30.0, share)
            met.append(-4.0 * damage + misses[39] >= 30.0)
        assert share - 0.02 <= np.mean(met) <= share + 0.045


@pytest.mark.parametrize("quality", [28.0, 45.0])
def test_margins_are_as_wide_as_misses_are_at_that_damage(quality):
    """Misses grow with damage: nine of ten are met at a low quality and at a high one."""
    rng = np.random.default_rng(1)
    usual, rise, least = 8.0, 1.0, 0.5
    met = []
    for _ in range(4000):
        misses = sorted(rng.normal(size=59).tolist())
        promise = QualityPromise(0.0, -4.0, misses, usual, rise, least)
        damage = promise.highest_log_damage(quality, 0.9)
        scale = max(least, usual + rise * damage)
        assert promise.usual_miss(damage) == pytest.approx(scale)
        met.append(-4.0 * damage + scale * rng.normal() >= quality)
    assert 0.88 <= np.mean(met) <= 0.93


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda p: p.reaching(0.5), "--quality 0.5"),
        (lambda p: p.reaching(float("nan")), "--quality nan"),
        (lambda p: p.reaching(30, 1.0), "--confidence 1"),
        (lambda p: p.reaching(30, 0.99), "the most they can promise is 0.95"),
        (lambda p: load_policy("static").reaching(30), "static cannot promise"),
    ],
)
def test_qualities_that_cannot_be_promised_are_refused(learned, ask, message):
    with pytest.raises(UserError, match=re.escape(message)):
        ask(learned)


def test_a_policy_without_roll_outs_promises_nothing(learned):
    learned.promise = None
    with pytest.raises(UserError, match="too few roll-outs"):
        learned.reaching(30)


def test_calibration_learns_what_a_step_takes_here(pipe, learned, monkeypatch):
    """Blocks made to sleep: their time is known, and so is the number of steps it leaves."""
    block = pipe.transformer.transformer_blocks[0]
    plain, nap = block.forward, 0.1

    def slow(*args, **kwargs):
        time.sleep(nap)
        return plain(*args, **kwargs)

    monkeypatch.setattr(block, "forward", slow)
    with foresight.reuse(pipe, learned, speedup=2.0) as session:
        session.calibrate(PROMPT, height=32, width=32, num_inference_steps=4, output_type="latent")
        costs = session.policy.costs
        assert session.policy.speedup == 2.0
        assert nap < sum(costs["block_seconds"]) < 5 * nap
        assert costs["overhead_seconds"] < nap
        sample(pipe)
        computed = (session.report().actions[:, 0] == COMPUTE).sum()
    assert sum(learned.costs["block_seconds"]) == sum(COSTS["block_seconds"])
    assert computed == STEPS // 2


def test_only_trained_policies_are_calibrated(pipe):
    with foresight.reuse(pipe, "static") as session, pytest.raises(UserError, match="static"):
        session.calibrate(PROMPT, height=32, width=32, num_inference_steps=2)


def test_a_learned_plan_runs_as_planned(pipe, learned):
    with watch_blocks(pipe) as calls, foresight.reuse(pipe, learned, speedup=2.0) as session:
        sample(pipe)
    report = session.report()
    assert report.plan is not None
    assert (report.actions == report.plan.actions).all()
    assert len(calls) == (report.actions == COMPUTE).sum() < STEPS * NUM_BLOCKS


def test_the_prompt_reaches_the_learned_policy(pipe, learned):
    embeddings = []
    for prompt in ("a red circle moves left", "a blue square spins over stripes"):
        with foresight.reuse(pipe, learned) as session:
            sample(pipe, prompt=prompt, steps=4)
        embeddings.append(session.generation.prompt_embedding)
        assert session.generation.config == GenerationConfig(32, 32, 16, 4, 4.0)
    text = pipe.encode_prompt("a red circle moves left", do_classifier_free_guidance=False)[0]
    assert embeddings[0] == pytest.approx(text[0].mean(dim=0).detach().numpy(), rel=1e-4, abs=1e-5)
    assert not np.allclose(embeddings[0], embeddings[1])


def test_a_policy_for_another_model_is_refused(learned, other_pipe):
    with pytest.raises(UserError, match="trained for other weights of this model"):
        foresight.enable(other_pipe, learned)
    with pytest.raises(UserError, match="no foresight policy is enabled"):
        foresight.disable(other_pipe)


def test_fine_tuned_weights_are_taken_if_they_are_said_to_be(learned, other_pipe, tmp_path):
    learned.save_pretrained(tmp_path / "policy")
    with foresight.reuse(other_pipe, f"{tmp_path}/policy[fine_tuned=true]") as session:
        sample(other_pipe, steps=4)
    assert (session.report().actions != COMPUTE).any()
    learned.fingerprint = {**learned.fingerprint, "width": 64}
    learned.save_pretrained(tmp_path / "narrow")
    with pytest.raises(UserError, match=r"trained for another model .*width: 64 there, 128 here"):
        foresight.enable(other_pipe, f"{tmp_path}/narrow[fine_tuned=true]")


def test_the_fingerprint_tells_weights_apart_and_nothing_else(pipe, other_pipe):
    first, second = fingerprint(pipe), fingerprint(other_pipe)
    assert first == fingerprint(pipe)
    assert {key for key in first if first[key] != second[key]} == {"weights_hash"}
    assert first["num_blocks"] == NUM_BLOCKS
    assert first["width"] == 128


@pytest.mark.parametrize("speedup", [0.5, 99, float("nan")])
def test_speed_ups_out_of_range_are_refused(learned, speedup):
    with pytest.raises(UserError, match="--speedup"):
        learned.at(speedup)


def test_a_speed_up_beyond_the_model_s_is_refused_before_the_first_block(pipe, learned):
    message = r"--speedup 15 cannot be reached here; the most is"
    with (
        watch_blocks(pipe) as calls,
        pytest.raises(UserError, match=message),
        foresight.reuse(pipe, learned, speedup=15),
    ):
        sample(pipe)
    assert not calls


def test_damaged_policies_are_refused(learned, tmp_path):
    learned.save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:500])
    with pytest.raises(UserError, match="damaged"):
        load_policy(tmp_path)
    weights.write_bytes(whole)
    (tmp_path / "config.json").write_text("{}", "utf-8")
    with pytest.raises(UserError, match="no trained policy"):
        load_policy(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(UserError, match="no trained policy"):
        load_policy(tmp_path)
