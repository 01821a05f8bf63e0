"""The ablations: what their variants plan, their search, their training sets and their table."""

import dataclasses
import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from latte_by_hand import PROFILED_CONFIG, PROFILED_PROMPTS
from synthetic_traces import MODEL, NUM_BLOCKS, NUM_STEPS, PROMPT_WIDTH, write_trace_set

from benchmarks import ablations
from benchmarks.ablation_forecasts import (
    AtStack,
    answering,
    best_constants,
    constant,
    damped_line,
    line,
    reusing,
    stack_model,
)
from benchmarks.ablation_foresight import Following, ForesightRun
from benchmarks.ablation_policies import (
    ExactCount,
    FixedPower,
    GivenSteps,
    NoCorrections,
    NoGains,
    NoReaction,
    OneStepLabel,
    WorstRun,
    even_cadence,
    warmed_up_cadence,
)
from benchmarks.ablation_runs import Bench, PlannedRun
from benchmarks.ablation_search import SearchRun, local_search
from benchmarks.ablation_table import page, summarize
from benchmarks.ablation_training import Training, take_part, trainings
from benchmarks.ablation_variants import PLANNED
from foresight.config import GenerationConfig, UserError
from foresight.evaluation import Video
from foresight.pipeline import generate
from foresight.plan import COMPUTE, FORECAST, REUSE
from foresight.policies.base import Generation
from foresight.policies.learned import LearnedPolicy
from foresight.traces import TraceSet
from policy_training.config import TrainConfig
from policy_training.dataset import TraceData
from policy_training.export import measured_costs
from policy_training.generations import fingerprint_of, load_generations, split_by_prompt
from policy_training.module import ReuseTraining

SPEEDUPS = (1.5, 2.0, 3.0)
COUNTS = {1.5: 7, 2.0: 5, 3.0: 3}  # of ten steps


def untrained(folder) -> LearnedPolicy:
    """A policy that knows its traces' kernel, with dynamics and a power that matter."""
    generations = load_generations([folder])
    settings = TrainConfig([folder], folder / "unused")
    data = TraceData(*split_by_prompt(generations, 0.34, 0), settings)
    module = ReuseTraining.for_data(settings, data)
    with torch.no_grad():
        module.model.dynamics.reaction[:2] = torch.tensor([-0.8, 0.3])
        module.model.dynamics.log_power.fill_(-1.0)
    facts = fingerprint_of(generations[0].trace)
    model = module.model.requires_grad_(False)
    return LearnedPolicy(model, facts, measured_costs(generations))


@pytest.fixture(scope="module")
def traces(tmp_path_factory):
    return write_trace_set(tmp_path_factory.mktemp("ablations") / "traces", prompts=6, seeds=2)


@pytest.fixture(scope="module")
def policy(traces):
    return untrained(traces)


@pytest.fixture(scope="module")
def told():
    """What a policy is told, of a solver whose response is known."""
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(NUM_STEPS)
    return Generation(
        config=GenerationConfig(32, 32, 4, NUM_STEPS, 4.0),
        timesteps=np.linspace(999, 0, NUM_STEPS),
        sigmas=np.linspace(0.99, 0.1, NUM_STEPS),
        prompt_embedding=np.random.default_rng(0).normal(size=PROMPT_WIDTH),
        block_names=tuple(MODEL["block_names"]),
        block_kinds=tuple(MODEL["block_kinds"]),
        scheduler=scheduler,
    )


def computed_by(plan):
    return plan.actions[:, 0] == COMPUTE


def choices(count):
    """All ways to compute `count` steps, the first among them."""
    for rest in itertools.combinations(range(1, NUM_STEPS), count - 1):
        yield np.isin(np.arange(NUM_STEPS), (0, *rest))


def runs_of(computed):
    """Runs of skipped steps: the two steps computed before, the skipped ones, the step after."""
    order = [0, *np.flatnonzero(computed), NUM_STEPS]
    for previous, latest, after in zip(order, order[1:], order[2:], strict=False):
        if after - latest > 1:
            yield previous, latest, list(range(latest + 1, after)), after


def predictions(policy, told):
    """Vectors (S, S) with the Gram matrix that the policy expects, the first of them 0."""
    with torch.no_grad():
        gram = policy.model.gram(torch.from_numpy(told.sigmas).float(), policy._context(told))[0]
    scale, axes = np.linalg.eigh(gram.numpy())
    return axes * np.sqrt(scale.clip(0))


def least_squares(v, sigmas, p, a, s):
    return (
        np.linalg.lstsq((v[a] - v[p])[:, None], v[s] - v[a], rcond=None)[0].item() if p < a else 0
    )


def reused(v, sigmas, p, a, s):
    return 0


def halfway_on(v, sigmas, p, a, s):
    return 0.5 * (sigmas[a] - sigmas[s]) / (sigmas[p] - sigmas[a]) if p < a else 0


def always_the_same(v, sigmas, p, a, s):
    return 0.7 if p < a else 0


RULES = {reused: reusing, halfway_on: damped_line(0.5), always_the_same: constant(0.7)}


def final_latents(scheduler, predicted):
    """Latents (d,) after a scheduler's steps from 0, given every prediction (S, d)."""
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(scheduler.config)
    scheduler.set_timesteps(NUM_STEPS)
    latents = torch.zeros(NUM_STEPS, dtype=torch.float64)
    for timestep, each in zip(scheduler.timesteps, torch.from_numpy(predicted), strict=True):
        (latents,) = scheduler.step(each, timestep, latents, return_dict=False)
    return latents.numpy()


def executed(plan, v):
    """What a plan returns for predictions (S, d) that nothing changes."""
    returned, seen = [], []
    for s, (action, beta) in enumerate(
        zip(plan.actions[:, 0], plan.coefficients[:, 0], strict=True)
    ):
        kappa, lam = plan.corrections[s].tolist()
        if action == COMPUTE:
            seen.append(v[s])
            change = kappa * (seen[-1] - seen[-2]) if kappa else 0
            returned.append(v[s] + change - (lam * (seen[-2] - seen[-3]) if lam else 0))
        elif action == REUSE:
            returned.append(seen[-1])
        else:
            returned.append(seen[-1] + beta * (seen[-1] - seen[-2]))
    return np.stack(returned)


@pytest.mark.parametrize("name", PLANNED)
def test_every_variant_computes_exactly_the_steps_asked_for(name, policy, traces, told):
    variant = PLANNED[name](policy, load_generations([traces]))
    uncorrected = ("no-gains", "one-step-label", "no-corrections", "stack", "reuse-only")
    plain = ("plain", "warmed-up-plain")
    for speedup in SPEEDUPS:
        plan = variant.at(speedup).begin(told)
        assert plan.shape == (NUM_STEPS, NUM_BLOCKS)
        assert computed_by(plan).sum() == COUNTS[speedup]
        assert (plan.actions == plan.actions[:, :1]).all()
        assert plan.at_output == (name != "stack")
        assert plan.corrections.any() == (name not in (*uncorrected, *plain))
        assert (plan.actions == FORECAST).any() == (name not in ("reuse-only", *plain))


def test_choosing_as_the_policy_does_gives_its_own_plan(policy, told):
    risks = policy._risks(told, NUM_STEPS)
    for speedup in SPEEDUPS:
        own = ExactCount.of(policy).at(speedup).begin(told)
        power = policy.model.dynamics.power.item()
        again = FixedPower.at_power(policy, power).at(speedup).begin(told)
        steps = GivenSteps.chosen_by(policy, lambda *_, own=own: computed_by(own))
        direct = risks.plan(computed_by(own), NUM_BLOCKS)
        for plan in (again, direct, steps.at(speedup).begin(told)):
            assert (plan.actions == own.actions).all()
            assert plan.coefficients == pytest.approx(own.coefficients)
            assert plan.corrections == pytest.approx(own.corrections, rel=1e-4, abs=1e-6)


def test_given_steps_may_lie_far_apart(policy, told):
    first = np.arange(NUM_STEPS) < 1
    plan = GivenSteps.chosen_by(policy, lambda *_: first).at(1.5).begin(told)
    assert (computed_by(plan) == first).all()


@pytest.mark.parametrize("speedup", SPEEDUPS)
def test_the_worst_run_is_the_least_of_all_plans(policy, told, speedup):
    variant = WorstRun.of(policy).at(speedup)
    weight = variant._weights(variant._risks(told, NUM_STEPS))

    def worst(computed):
        return max(weight[p, a, after] for p, a, _, after in runs_of(computed))

    found = worst(computed_by(variant.begin(told)))
    assert found == min(map(worst, choices(COUNTS[speedup])))


@pytest.mark.parametrize("power", [0.5, 1.0])
@pytest.mark.parametrize("speedup", SPEEDUPS)
def test_a_power_adds_up_what_runs_leave(policy, told, speedup, power):
    energies = policy._risks(told, NUM_STEPS).damage

    def damage(computed):
        return sum(energies[p, a, after] ** power for p, a, _, after in runs_of(computed))

    found = damage(computed_by(FixedPower.at_power(policy, power).at(speedup).begin(told)))
    assert found == pytest.approx(min(map(damage, choices(COUNTS[speedup]))))


@pytest.mark.parametrize("coefficient", [least_squares, *RULES])
@pytest.mark.parametrize("variant", [OneStepLabel, NoGains])
@pytest.mark.parametrize("speedup", SPEEDUPS)
def test_without_gains_squared_errors_of_the_output_add_up(
    policy, told, speedup, variant, coefficient
):
    """Over a run; over runs they do for the one-step label, and else by the policy's power."""
    changed = answering(policy, RULES[coefficient]) if coefficient in RULES else policy
    plan = variant.of(changed).at(speedup).begin(told)
    v = predictions(policy, told)
    power = 1.0 if variant is OneStepLabel else policy.model.dynamics.power.item()
    assert variant is OneStepLabel or abs(power - 1) > 0.1

    def energy(p, a, run):
        betas = np.array([coefficient(v, told.sigmas, p, a, s) for s in run]).clip(-1, 8)
        missed = v[a] + betas[:, None] * (v[a] - v[p]) - v[run]
        return (missed**2).sum()

    def damage(computed):
        return sum(energy(p, a, run) ** power for p, a, run, _ in runs_of(computed))

    least = min(map(damage, choices(COUNTS[speedup])))
    assert damage(computed_by(plan)) == pytest.approx(least, rel=1e-6)
    for p, a, run, _ in runs_of(computed_by(plan)):
        betas = [coefficient(v, told.sigmas, p, a, s) for s in run]
        assert plan.coefficients[run, 0] == pytest.approx(np.clip(betas, -1, 8), rel=1e-4)
    assert not plan.corrections.any()


@pytest.mark.parametrize("corrects", [True, False])
def test_without_reaction_damage_is_what_the_scheduler_makes_of_it(policy, told, corrects):
    """Against its own steps; least squares bound what any correction can reach."""
    v = predictions(policy, told)
    variant = NoReaction.of(policy)
    variant.corrects = corrects
    risks = variant._risks(told, NUM_STEPS)
    right = final_latents(told.scheduler, v)

    def effect(predicted):
        return final_latents(told.scheduler, predicted) - right

    for a, after in itertools.combinations(range(1, NUM_STEPS + 1), 2):
        if after == a + 1:
            continue
        computed = np.array([s <= a or s >= after for s in range(NUM_STEPS)])
        plan = risks.plan(computed, NUM_BLOCKS)
        plain = effect(executed(dataclasses.replace(plan, corrections=np.zeros((0, 2))), v))
        left = effect(executed(plan, v))
        scale = float(plain @ plain)
        assert risks.damage[a - 1, a, after] == pytest.approx(
            left @ left, rel=1e-3, abs=1e-5 * scale
        )
        if corrects and after < NUM_STEPS:
            unit = np.arange(NUM_STEPS)[:, None] == after
            ways = [effect(v + unit * way) for way in (v[after] - v[a], v[a] - v[a - 1])]
            least = np.linalg.lstsq(np.stack(ways, axis=1), -plain, rcond=None)[1]
            assert left @ left == pytest.approx(least.sum(), rel=0.05, abs=0.01 * scale)
        else:
            assert not plan.corrections.any()


def test_corrections_are_all_that_no_corrections_takes_away(policy, told):
    without = NoCorrections.of(policy)._risks(told, NUM_STEPS)
    own = policy._risks(told, NUM_STEPS)
    assert not without.corrections.any()
    assert own.corrections.any()
    assert (without.coefficients == own.coefficients).all()
    assert (without.damage[..., -1] == own.damage[..., -1]).all()  # nothing comes after
    skips = own.rows[..., :-1] >= 0
    assert (without.damage[..., :-1][skips] > own.damage[..., :-1][skips]).all()
    for name in ("response", "reaction", "reach", "doubt"):
        same = getattr(NoCorrections.of(policy).dynamics(told), name)
        assert (same == getattr(policy.dynamics(told), name)).all()


@pytest.mark.parametrize("coefficient", RULES)
def test_rules_outlast_a_change_of_variant(policy, told, coefficient):
    """What is planned is what is run: forecasts by the rule, and corrections made for them."""
    changed = answering(policy, RULES[coefficient])
    for variant in (ExactCount.of(changed), NoReaction.of(changed), NoCorrections.of(changed)):
        plan = variant.at(2.0).begin(told)
        for p, a, run, _ in runs_of(computed_by(plan)):
            expected = [coefficient(None, told.sigmas, p, a, s) for s in run]
            assert plan.coefficients[run, 0] == pytest.approx(expected)
    assert policy._risks(told, 8).coefficients.std() > 0.1  # stays as it was


def test_cadences():
    assert np.flatnonzero(even_cadence(30, 10)).tolist() == list(range(0, 30, 3))
    warmed = np.flatnonzero(warmed_up_cadence(30, 17))
    assert warmed.tolist() == [0, 1, 2, 3, *range(5, 30, 2)]  # as `static`, every second step
    for count in range(1, 31):
        for cadence in (even_cadence, warmed_up_cadence):
            computed = cadence(30, count)
            assert computed[0]
            assert computed.sum() == count


def test_constants_are_found_in_traces_made_with_them(traces):
    """Outputs on a line, so that extrapolation is exact; then one that stands still every time."""
    generations = load_generations([traces])
    for generation in generations:
        trace = generation.trace
        vectors = trace["sigmas"][:, None] * np.ones((1, 4))
        trace["group_gram"] = np.repeat((vectors @ vectors.T)[None], 2, axis=0)
    assert best_constants(generations)[1] == pytest.approx(1.0)
    flips = np.where(np.arange(NUM_STEPS) % 2, 1.0, -1.0)  # lags of one step: beta = -1 or 0
    for generation in generations:
        generation.trace["group_gram"] = np.repeat(np.outer(flips, flips)[None], 2, axis=0)
    assert best_constants(generations)[0] == 0.0


def test_the_line_goes_on_as_it_came():
    levels = torch.tensor([[0.4, 0.5, 0.7], [0.1, 0.5, 0.7], [0.5, 0.9, 0.9]])
    assert line(levels).tolist() == pytest.approx([0.5, 2.0, 0.0])


def test_the_stack_model_reads_the_stack(policy, told, traces):
    rows = TraceSet.open(traces).traces
    for row in rows:
        row["group_gram"][1] = np.eye(NUM_STEPS)  # the output must not be read
    mean = np.mean([row["group_gram"][0] for row in rows], axis=0)
    model = stack_model(rows)
    computed = np.isin(np.arange(NUM_STEPS), (0, 2, 4, 5, 8))
    inner = GivenSteps.chosen_by(policy, lambda *_: computed)
    plan = AtStack(inner, model).at(2.0).begin(told)
    assert (computed_by(plan) == computed).all()
    assert plan.coefficients[1, 0] == 0
    for s, a, p in ((3, 2, 0), (6, 5, 4), (7, 5, 4), (9, 8, 5)):
        along = mean[s, a] - mean[s, p] - mean[a, a] + mean[a, p]
        length = mean[a, a] + mean[p, p] - 2 * mean[a, p]
        assert plan.coefficients[s] == pytest.approx(along / length, rel=1e-3)


def test_followed_decisions_are_forecast_per_block(policy, told):
    actions = np.full((NUM_STEPS, NUM_BLOCKS), COMPUTE)
    actions[4:6, 0] = actions[5:7, 2] = REUSE
    plan = Following.run_of(policy, actions).begin(told)
    assert ((plan.actions == COMPUTE) == (actions == COMPUTE)).all()
    kernel = policy.model.kernel.double().numpy()
    for step, block, a, p in ((4, 0, 3, 2), (5, 0, 3, 2), (6, 2, 4, 3)):
        gram = kernel[1 + block]
        along = gram[step, a] - gram[step, p] - gram[a, a] + gram[a, p]
        length = gram[a, a] + gram[p, p] - 2 * gram[a, p]
        assert plan.actions[step, block] == FORECAST
        assert plan.coefficients[step, block] == pytest.approx(along / length, rel=1e-2)


@pytest.mark.parametrize("seed", range(4))
def test_local_search_only_improves(seed):
    rng = np.random.default_rng(seed)
    value = rng.normal(size=NUM_STEPS)
    start = even_cadence(NUM_STEPS, 4)
    asked = []

    def error_of(computed):
        asked.append(computed)
        return float(value @ computed)

    found = local_search(start, error_of, float(value @ start), rng, 25)
    assert len({each.tobytes() for each in asked} | {start.tobytes()}) == 1 + len(asked)
    assert all(each[0] and each.sum() == 4 for each in asked)
    assert value @ found == min([value @ start, *(value @ each for each in asked)])
    thorough = local_search(start, lambda c: float(value @ c), float(value @ start), rng, 10_000)
    best = min(choices(4), key=lambda c: value @ c)
    assert (thorough == best).all()  # a sum has no other optimum


def rows_of(variant, psnrs, speedup=2.0, setting="", computed=0.5):
    return pd.DataFrame(
        [
            {
                "variant": variant,
                "speedup": speedup,
                "setting": setting,
                "prompt": f"prompt {number}",
                "seed": 0,
                **dataclasses.asdict(GenerationConfig(32, 32, 16, 10, 4.0)),
                "computed": computed,
                "psnr": value,
            }
            for number, value in enumerate(psnrs)
        ]
    )


def test_differences_are_paired_by_video():
    """Two videos: a resampled mean is one of them by 1 : 2 : 1, so 95 % reach from end to end."""
    full = rows_of("full", [30.0, 60.0])
    other = rows_of("plain", [29.0, 56.0])
    summary = summarize(pd.concat([full, other.iloc[::-1]]), [2.0])
    row = summary[summary["variant"] == "plain"].iloc[0]
    assert (row["psnr"], row["difference"]) == (42.5, -2.5)
    assert (row["low"], row["high"]) == (-4.0, -1.0)


def test_intervals_of_many_videos_are_those_of_the_normal_distribution():
    rng = np.random.default_rng(1)
    base, off = rng.normal(40, 8, size=400), rng.normal(-1, 2, size=400)
    summary = summarize(pd.concat([rows_of("full", base), rows_of("even", base + off)]), [2.0])
    row = summary[summary["variant"] == "even"].iloc[0]
    half = 1.96 * off.std() / 20
    assert (row["low"], row["high"]) == pytest.approx(
        (off.mean() - half, off.mean() + half), abs=0.03
    )


def test_a_sweep_stands_for_its_best_setting_near_the_budget():
    nan = float("nan")
    swept = [("a", 0.48, 30.0), ("b", 0.52, 33.0), ("c", 0.6, 40.0), ("d", 0.31, 20.0)]
    rows = pd.concat(
        [
            rows_of("full", [50.0, 52.0]),
            rows_of("full", [40.0, 42.0], speedup=3.0, computed=0.4),
            *(
                rows_of("foresight-output", [psnr - 1, psnr + 1], nan, setting, share)
                for setting, share, psnr in swept
            ),
        ]
    )
    chosen = summarize(rows, [2.0, 3.0]).set_index(["variant", "speedup"]).loc["foresight-output"]
    assert chosen["setting"].to_dict() == {2.0: "b", 3.0: "a"}
    assert chosen["difference"].to_dict() == {2.0: -18.0, 3.0: -11.0}
    text = page(summarize(rows, [2.0, 3.0]), "a model", "a device")
    assert "| 33.0 (-18.0 [-18.0, -18.0]) | 30.0 (-11.0 [-11.0, -11.0]) |" in text
    assert "2x computes 52% (b); 3x computes 48% (a)" in text


def test_a_part_of_a_trace_set_is_spread_over_it(traces, tmp_path):
    take_part(traces, 4, tmp_path / "part")
    take_part(traces, 4, tmp_path / "part")
    whole, part = load_generations([traces]), load_generations([tmp_path / "part"])
    assert [g.trace["generation_id"] for g in part] == ["00000", "00003", "00006", "00009"]
    for taken in part:
        (source,) = [g for g in whole if g.trace["generation_id"] == taken.trace["generation_id"]]
        assert (taken.trace["gram"] == source.trace["gram"]).all()
        assert len(taken.rollouts) == len(source.rollouts) == 2


def test_networks_differ_in_what_they_are_called_after(traces, tmp_path):
    networks = trainings([traces, traces], tmp_path, max_epochs=1, batch_size=64)
    assert list(networks) == [
        *("full", "seed", "without-prompt", "shuffled-prompt", "off-policy"),
        *("generations-5", "generations-10"),  # of twelve
    ]
    full = networks["full"].config
    assert networks["off-policy"].config.dirs == [traces]
    assert networks["without-prompt"].config.prompt < full.prompt
    shuffled = networks["shuffled-prompt"].run()
    assert shuffled.fingerprint == MODEL
    again = networks["shuffled-prompt"].run()
    assert again.digest() == shuffled.digest()
    assert not (tmp_path / "policies" / "full").exists()
    with pytest.raises(UserError):
        dataclasses.replace(
            networks["shuffled-prompt"],
            config=dataclasses.replace(networks["shuffled-prompt"].config, dirs=[traces]),
        ).run()


@pytest.fixture(scope="module")
def video():
    return Video(PROFILED_PROMPTS[0], 3, PROFILED_CONFIG)


@pytest.fixture(scope="module")
def reference(pipe, video):
    return generate(pipe, video.prompt.text, video.config, seed=video.seed)


def test_foresight_is_followed_block_by_block(pipe, profiled, video, reference, monkeypatch):
    monkeypatch.setattr("benchmarks.ablation_foresight.THRESHOLDS", (4.0,))
    run = ForesightRun(untrained(profiled))
    made = []
    rows = run.rows(Bench(pipe, video, reference, lambda: made.append(1)))
    assert len(made) == run.num_generations == len(rows)
    by_variant = pd.DataFrame(rows).groupby("variant")["computed"].apply(list)
    assert by_variant["foresight-forecast"] == by_variant["foresight-residual"]
    assert min(by_variant["foresight-residual"]) < 1


def test_searching_never_ends_worse(pipe, profiled, video, reference):
    policy = untrained(profiled)
    bench = Bench(pipe, video, reference, lambda: None)
    (start,) = PlannedRun("full", ExactCount.of(policy), [2.0]).rows(bench)
    (found,) = SearchRun(policy, 2.0, 4, seed=0).rows(bench)
    assert found["final_error"] <= start["final_error"]
    assert found["computed"] == start["computed"] == pytest.approx(0.4)


def test_an_interrupted_run_goes_on(pipe, profiled, tmp_path, monkeypatch):
    policy = untrained(profiled)
    monkeypatch.setattr(Training, "run", lambda self: policy)
    networks = {"full": Training(TrainConfig([profiled], tmp_path))}
    generations = load_generations([profiled])
    videos = [Video(prompt, 7, PROFILED_CONFIG) for prompt in PROFILED_PROMPTS[:2]]
    wanted = {"speedups": (1.5, 2.5), "variants": ["plain", "even"], "num_evaluations": 1}
    rows_so_far = PlannedRun.rows
    calls = []

    def stop(self, bench):
        calls.append((self.name, bench.video.prompt.text))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return rows_so_far(self, bench)

    monkeypatch.setattr(PlannedRun, "rows", stop)
    with pytest.raises(KeyboardInterrupt):
        ablations.ablate(pipe, networks, generations, videos, work=tmp_path, **wanted)
    rows = ablations.ablate(pipe, networks, generations, videos, work=tmp_path, **wanted)
    assert len(calls) == 1 + len(set(calls)) == 7
    assert len(rows) == 2 * 3 * 2
    assert (rows["computed"] * 5 == rows["speedup"].map({1.5: 3, 2.5: 2})).all()
    again = ablations.ablate(pipe, networks, generations, videos, work=tmp_path, **wanted)
    pd.testing.assert_frame_equal(rows, again)
    assert len(calls) == 7
    with pytest.raises(UserError, match="speedups"):
        ablations.ablate(
            pipe, networks, generations, videos, work=tmp_path, **{**wanted, "speedups": (2.0,)}
        )
    with pytest.raises(UserError, match="nonsense"):
        ablations.ablate(pipe, networks, generations, videos, work=tmp_path, variants=["nonsense"])


def test_bad_input_ends_in_one_line(tmp_path, capsys):
    arguments = ["--model", "no-such-model", "--traces", str(tmp_path), "--prompts", "none.txt"]
    arguments += ["--configs", "none.json", "--work", str(tmp_path / "w"), "--output", "out.csv"]
    with pytest.raises(SystemExit) as stop:
        ablations.main(arguments)
    assert stop.value.code == 2
    assert "none.txt" in capsys.readouterr().err
