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
from benchmarks.ablation_forecasts import best_constants, line, stack_model
from benchmarks.ablation_foresight import Following, ForesightRun
from benchmarks.ablation_policies import (
    ExactCount,
    FixedPower,
    GivenSteps,
    NoGains,
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
    """A policy that knows its traces' kernel, with gains and power that matter."""
    generations = load_generations([folder])
    settings = TrainConfig([folder], folder / "unused")
    data = TraceData(*split_by_prompt(generations, 0.34, 0), settings)
    module = ReuseTraining.for_data(settings, data)
    with torch.no_grad():
        module.model.gain.weight[0, :2] = torch.tensor([-1.5, 0.4])
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


@pytest.mark.parametrize("name", PLANNED)
def test_every_variant_computes_exactly_the_steps_asked_for(name, policy, traces, told):
    variant = PLANNED[name](policy, load_generations([traces]))
    for speedup in SPEEDUPS:
        plan = variant.at(speedup).begin(told)
        assert plan.shape == (NUM_STEPS, NUM_BLOCKS)
        assert computed_by(plan).sum() == COUNTS[speedup]
        assert (plan.actions == plan.actions[:, :1]).all()
        assert plan.at_output == (name != "stack")
        corrects = name not in ("no-corrections", "stack", "reuse-only", "plain", "warmed-up-plain")
        assert plan.corrections.any() == corrects
        forecasts = name not in ("reuse-only", "plain", "warmed-up-plain")
        assert (plan.actions == FORECAST).any() == forecasts


def test_choosing_as_the_policy_does_gives_its_own_plan(policy, told):
    for speedup in SPEEDUPS:
        own = ExactCount.of(policy).at(speedup).begin(told)
        power = policy.model.power.item()
        again = FixedPower.at_power(policy, power).at(speedup).begin(told)
        steps = GivenSteps.chosen_by(policy, lambda *_, own=own: computed_by(own))
        for plan in (again, steps.at(speedup).begin(told)):
            assert (plan.actions == own.actions).all()
            assert (plan.coefficients == own.coefficients).all()
            assert plan.corrections == pytest.approx(own.corrections)


@pytest.mark.parametrize("speedup", SPEEDUPS)
def test_the_worst_run_is_the_least_of_all_plans(policy, told, speedup):
    variant = WorstRun.of(policy).at(speedup)
    weight = variant._weights(variant._risks(told, NUM_STEPS))

    def worst(computed):
        return max(weight[p, a, after] for p, a, _, after in runs_of(computed))

    found = worst(computed_by(variant.begin(told)))
    assert found == min(map(worst, choices(COUNTS[speedup])))


@pytest.mark.parametrize("speedup", SPEEDUPS)
def test_the_one_step_label_adds_squared_errors_of_the_output(policy, told, speedup):
    own = OneStepLabel.of(policy).at(speedup)
    amplitude, _, gain = policy._predict(told, NUM_STEPS)

    def damage(computed):
        return sum(
            (amplitude[p, a, s] / gain[s]) ** 2 for p, a, run, _ in runs_of(computed) for s in run
        )

    found = damage(computed_by(own.begin(told)))
    assert found == pytest.approx(min(map(damage, choices(COUNTS[speedup]))))


def test_gains_are_all_that_is_taken_away(policy, told):
    amplitude, coefficients, gain = policy._predict(told, NUM_STEPS)
    assert gain.max() > 2 * gain.min()
    without, same, ones = NoGains.of(policy)._predict(told, NUM_STEPS)
    assert (ones == 1).all()
    assert (same == coefficients).all()
    finite = np.isfinite(amplitude)
    assert (np.isfinite(without) == finite).all()
    assert without[finite] == pytest.approx((amplitude / gain)[finite])


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


def test_the_stack_model_reads_the_stack(traces):
    rows = TraceSet.open(traces).traces
    for row in rows:
        row["group_gram"][1] = np.eye(NUM_STEPS)  # the output must not be read
    mean = np.mean([row["group_gram"][0] for row in rows], axis=0)
    model = stack_model(rows)
    s, a, p = 7, 5, 4
    levels = torch.tensor(rows[0]["sigmas"][[s, a, p]]).float()[None]
    nothing = model.context(torch.zeros(1, 1), torch.zeros(1, 5))
    found = model(torch.zeros(1, dtype=torch.long), levels, nothing)
    along = mean[s, a] - mean[s, p] - mean[a, a] + mean[a, p]
    length = mean[a, a] + mean[p, p] - 2 * mean[a, p]
    assert found["coefficient"].item() == pytest.approx(along / length, rel=1e-3)


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
