"""The ablations: what their variants plan, their search, their training sets and their table."""

import dataclasses
import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from latte_by_hand import PROFILED_CONFIG, PROFILED_PROMPTS
from synthetic_traces import write_trace_set

from benchmarks import ablations
from benchmarks.ablation_blocks import INSIDE, block_path
from benchmarks.ablation_runs import Bench
from benchmarks.ablation_steps import (
    evenly_spaced,
    foresight_steps,
    local_search,
    warmed_up_cadence,
)
from benchmarks.ablation_table import page, summarize
from benchmarks.ablation_training import Training, foreseen, in_turns, trainings
from benchmarks.ablation_variants import (
    FULL,
    MOST_FORECAST,
    PLANNED,
    Known,
    Variant,
    learned_weights,
    shown_so_far,
)
from foresight.config import GenerationConfig, UserError
from foresight.evaluation import Video
from foresight.plan import COMPUTE, plain_weights
from foresight.policies.learned import LearnedPolicy
from foresight.policies.multistep import carry_out, coordinates, local_energies
from foresight.policies.reaction import Reaction, gains_after
from foresight.solver import solver_of
from policy_training.config import TrainConfig
from policy_training.damage import predicted_damage
from policy_training.dataset import TraceData
from policy_training.export import measured_costs
from policy_training.generations import (
    fingerprint_of,
    load_generations,
    make_buckets,
    split_by_prompt,
)
from policy_training.module import ReuseTraining
from policy_training.reaction import fit_reaction
from policy_training.rollouts import gather_rollouts

STEPS = 10
COMPUTED = np.isin(np.arange(STEPS), (0, 1, 3, 5, 8))
VIDEO = Video(PROFILED_PROMPTS[0], 3, PROFILED_CONFIG)


def scheduler():
    found = FlowMatchEulerDiscreteScheduler()
    found.set_timesteps(STEPS)
    return found


@pytest.fixture
def vectors(rng):
    """Predictions (S, 16) that drift and turn."""
    turn = np.linspace(0, 1.5, STEPS)[:, None]
    start, drift, bend = rng.normal(size=(3, 16))
    wander = 0.01 * rng.normal(size=(STEPS, 16)).cumsum(axis=0)
    return np.cos(turn) * start + turn * drift + turn**3 * bend + wander


@pytest.fixture
def known(vectors):
    """The mean prompt goes half as far; what the policy would choose is known by its count."""
    return Known(
        path=vectors,
        mean=vectors[:1] + (vectors - vectors[:1]) / 2,
        own=vectors @ vectors.T,
        solver=solver_of(scheduler()),
        sigmas=scheduler().sigmas.numpy()[:-1].astype(float),
        reaction=Reaction(*np.outer([0.3, 0.6], np.linspace(1, 0.2, STEPS))),
        start=lambda count: np.arange(STEPS) < count,
        steps=lambda count: np.arange(STEPS) % (STEPS // count) == 0,
    )


def weights_of(name, known):
    return PLANNED[name].how(known, COMPUTED)


def choices(count):
    for rest in itertools.combinations(range(1, STEPS), count - 1):
        yield np.isin(np.arange(STEPS), (0, *rest))


def runs_of(computed):
    """Runs of skipped steps: the two steps computed before, and the one after."""
    order = [0, *np.flatnonzero(computed), len(computed)]
    for previous, latest, after in zip(order, order[1:], order[2:], strict=False):
        if after - latest > 1:
            yield previous, latest, after


def test_without_correction_each_stand_in_comes_as_close_as_can_be(known, vectors):
    """To its own prediction; least squares bound it from below."""
    untouched = dataclasses.replace(known, reaction=Reaction(*np.zeros((2, STEPS))))
    weights = weights_of("no correction", untouched)
    assert (weights[COMPUTED] == plain_weights(1)).all()
    for step in np.flatnonzero(~COMPUTED):
        held = vectors[np.flatnonzero(COMPUTED[:step])[::-1][:3]].T
        returned, truth = held @ weights[step, : held.shape[1]], vectors[step]
        best = held @ np.linalg.lstsq(held, truth, rcond=None)[0]
        least, reuse = ((best - truth) ** 2).sum(), ((held[:, 0] - truth) ** 2).sum()
        assert least <= ((returned - truth) ** 2).sum() <= least + 0.1 * reuse


def test_plain_reuse_reads_the_latest_prediction_alone(known):
    assert (weights_of("plain reuse", known) == plain_weights(STEPS)).all()
    assert (weights_of("even spacing", known) != 0).any(axis=0).all()


def test_without_a_reaction_weights_are_those_of_a_model_that_does_not_answer(known):
    unmoved = Reaction(*np.zeros((2, STEPS)))
    expected = carry_out(known.path, known.solver, unmoved, COMPUTED[None])[0][0]
    found = weights_of("no reaction", known)
    assert found == pytest.approx(expected)
    assert np.abs(found - learned_weights(known, COMPUTED)).max() > 0.01


def test_two_point_forecasts(known, vectors):
    fitted, line = (
        weights_of(name, known) for name in ("two-point forecast", "undamped extrapolation")
    )
    for step, latest, before in ((2, 1, 0), (4, 3, 1), (6, 5, 3), (7, 5, 3), (9, 8, 5)):
        along = (vectors[latest] - vectors[before])[:, None]
        (beta,) = np.linalg.lstsq(along, vectors[step] - vectors[latest], rcond=None)[0]
        assert fitted[step] == pytest.approx([1 + beta, -beta, 0], abs=1e-5)
        s, a, p = known.sigmas[[step, latest, before]]
        beta = (a - s) / (p - a)
        assert line[step] == pytest.approx([1 + beta, -beta, 0], abs=1e-5)
    assert (fitted[COMPUTED] == plain_weights(1)).all()


@pytest.mark.parametrize("count", [3, 5, 7])
def test_without_gains_steps_leave_least_in_sum_of_all_choices(known, count):
    """For the mean prompt."""
    left = local_energies(known.mean, known.solver, STEPS)

    def damage(computed):
        return sum(left[run] for run in runs_of(computed))

    chosen = PLANNED["no gain"].when(known, count)
    assert chosen.sum() == count
    assert damage(chosen) == pytest.approx(min(map(damage, choices(count))))


def test_without_a_search_steps_are_those_that_it_starts_from(known):
    assert PLANNED["no search"].when(known, 4).tolist() == [True] * 4 + [False] * 6
    assert (PLANNED["plain reuse"].when(known, 5) == known.steps(5)).all()


@pytest.mark.parametrize("count", [3, 5, 7])
def test_the_worst_segment_is_as_small_as_can_be(known, count):
    gains = gains_after(known.solver, known.reaction)
    left = local_energies(known.mean, known.solver, STEPS) * gains

    def runs(computed):
        return [left[run] for run in runs_of(computed)]

    chosen = PLANNED["worst segment"].when(known, count)
    assert chosen.sum() == count
    least = min(max(runs(each)) for each in choices(count))
    assert max(runs(chosen)) == pytest.approx(least)
    as_good = [each for each in choices(count) if max(runs(each)) <= least]
    assert sum(runs(chosen)) == pytest.approx(min(sum(runs(each)) for each in as_good))


def test_one_step_labels_keep_the_largest_changes(known, vectors):
    mean = np.zeros((STEPS, 16))
    mean[3:] += 2.0
    mean[7:] += 1.0
    mean[8:] += 3.0
    mean[1:] += 0.1
    chosen = PLANNED["one-step label"].when(dataclasses.replace(known, mean=mean), 4)
    assert np.flatnonzero(chosen).tolist() == [0, 3, 7, 8]


def test_the_closed_loop_goes_as_fast_as_was_seen(known):
    """Where the prompt moves as expected until step 3, and twice as far from there on."""
    changes = np.diff(known.path, axis=0, prepend=0)
    changes[4:] *= 2
    told = dataclasses.replace(known, own=(own := changes.cumsum(axis=0)) @ own.T)
    assert shown_so_far(told, COMPUTED, 2) == pytest.approx(known.path)
    later = shown_so_far(told, COMPUTED, 5)  # computed: 0, 1, 3, 5; the last pace was doubled
    assert later[:6] == pytest.approx(own[:6])
    assert np.diff(later[5:], axis=0) == pytest.approx(np.sqrt(2) * np.diff(known.path[5:], axis=0))
    closed = PLANNED["closed loop"].how(told, COMPUTED)
    plain = learned_weights(known, COMPUTED)
    assert closed[:4] == pytest.approx(plain[:4], abs=1e-6)
    assert np.abs(closed[6:] - plain[6:]).max() > 0.01


def test_residuals_stand_in_where_predictions_did(bench, policy):
    for inside, outside in (
        ("plain reuse of the residual", "plain reuse"),
        ("forecast of the residual", "two-point forecast"),
    ):
        plans = [
            variants[name].plan(policy, bench._generation, bench.own, 1.7)
            for variants, name in ((INSIDE, inside), (PLANNED, outside))
        ]
        assert [plan.at_output for plan in plans] == [False, True]
        assert (plans[0].actions == plans[1].actions).all()
        assert plans[0].coefficients[:, 0] == pytest.approx(-plans[1].weights[:, 1])
    assert (plans[0].coefficients != 0).any()
    inside, outside = (
        bench.planned(name, policy, ablations.VARIANTS[name], 1.7)["final_error"]
        for name in ("plain reuse of the residual", "plain reuse")
    )
    assert inside != outside


def test_blocks_have_steps_of_their_own(bench, policy):
    """Each the best choice for its own residuals, by hand."""
    plan = INSIDE["block by block"].plan(policy, bench._generation, bench.own, 1.7)
    sigmas, count = np.asarray(bench._generation.sigmas), 3
    solver, reaction = bench._generation.solver, policy.search.reaction(bench._generation)
    gains = gains_after(solver, reaction)
    for block in range(plan.shape[1]):
        path = block_path(policy, sigmas, block)
        kernel = policy.model.kernel[1 + block].numpy()
        assert path @ path.T == pytest.approx(kernel, abs=1e-3)  # profiled at these noise levels
        left = local_energies(path, solver, history=2) * gains
        every = [np.isin(np.arange(5), (0, *two)) for two in itertools.combinations(range(1, 5), 2)]
        best = min(every, key=lambda each: sum(left[run] for run in runs_of(each)))
        computed = plan.actions[:, block] == COMPUTE
        assert computed.sum() == count
        assert (computed == best).all()
        for before, latest, after in runs_of(computed):
            for step in range(latest + 1, after) if before < latest else ():
                along = (path[latest] - path[before])[:, None]
                (beta,) = np.linalg.lstsq(along, path[step] - path[latest], rcond=None)[0]
                assert plan.coefficients[step, block] == pytest.approx(
                    np.clip(beta, *MOST_FORECAST), rel=1e-4
                )


@pytest.mark.parametrize("count", [3, 5, 7])
def test_one_who_expects_what_comes_leaves_less_of_it(known, vectors, count):
    """No small move of one step leaves less of the own generation, nor does where it began."""
    variant = PLANNED["own Gram matrix"]
    misled = dataclasses.replace(known, path=np.eye(STEPS), mean=np.eye(STEPS))
    chosen = variant.when(misled, count)
    assert chosen.sum() == count

    def left(computed):
        facts = coordinates(known.own), known.solver, known.reaction
        return carry_out(*facts, np.stack(computed))[1]

    def is_move(other):
        here, there = np.flatnonzero(chosen & ~other), np.flatnonzero(other & ~chosen)
        return len(here) == 1 and abs(here - there)[0] <= 2

    moved = [other for other in choices(count) if is_move(other)]
    assert left([chosen])[0] <= left(moved).min() * 1.002
    gains = gains_after(known.solver, known.reaction)
    energies = local_energies(vectors, known.solver, STEPS) * gains
    begun = min(choices(count), key=lambda each: sum(energies[run] for run in runs_of(each)))
    assert left([chosen])[0] <= left([begun])[0]
    assert variant.how(misled, COMPUTED) == pytest.approx(
        learned_weights(known, COMPUTED), abs=1e-6
    )


def test_cadences():
    assert np.flatnonzero(evenly_spaced(30, 10)).tolist() == list(range(0, 30, 3))
    warmed = np.flatnonzero(warmed_up_cadence(30, 17))
    assert warmed.tolist() == [0, 1, 2, 3, *range(5, 30, 2)]  # as `static`, every second step
    for count in range(1, 31):
        for cadence in (evenly_spaced, warmed_up_cadence):
            computed = cadence(30, count)
            assert computed[0]
            assert computed.sum() == count


@pytest.mark.parametrize(
    ("count", "steps"),
    [
        (6, [0, 1, 2, 4, 6, 8]),  # every change since the warm-up is below the threshold
        (7, [0, 1, 2, 3, 4, 6, 8]),  # that from step 1 to 2 is above it
        (8, [0, 1, 2, 3, 4, 6, 7, 8]),  # so is that from step 4 to 6
        (4, [0, 1, 2, 6]),  # the shortest interval that computes so few is four
    ],
)
def test_foresight_decides_on_whole_steps(count, steps):
    """Along a line, by hand: 1 a step in the warm-up of three, 0.1 a step after it."""
    places = np.array([0, 1, 2, *(2 + 0.1 * np.arange(1, 8))])
    own = np.outer(places, places)
    assert np.flatnonzero(foresight_steps(own, count)).tolist() == steps


@pytest.mark.parametrize("evaluations", [0, 5, 1000])
def test_local_search_moves_step_by_step(rng, evaluations):
    wanted, start = np.array([0, 3, 5, 8]), np.arange(STEPS) < 4
    asked = []

    def error_of(computed):
        asked.append(computed)
        return float(abs(np.flatnonzero(computed) - wanted).sum())

    found = local_search(start, error_of, evaluations, rng)
    assert len({each.tobytes() for each in asked}) == len(asked) <= evaluations + 1
    assert all(each[0] and each.sum() == 4 for each in asked)
    assert error_of(found) == min(map(error_of, asked[:]))
    if evaluations == 1000:
        assert np.flatnonzero(found).tolist() == wanted.tolist()


def rows_of(variant, psnrs, speedup=2.0, share=0.5):
    video = {"seed": 0, **dataclasses.asdict(GenerationConfig(32, 32, 16, 10, 4.0))}
    row = {"variant": variant, "speedup": speedup, "compute_fraction": share, **video}
    return pd.DataFrame([row | {"prompt": str(n), "psnr": v} for n, v in enumerate(psnrs)])


def test_differences_are_paired_by_video():
    """Two videos: a resampled mean is one of them by 1 : 2 : 1, so 95 % reach from end to end."""
    full, other = rows_of(FULL, [30.0, 60.0]), rows_of("plain", [29.0, 56.0])
    third = rows_of(FULL, [70.0], speedup=3.0)
    rows = pd.concat([full, other.iloc[::-1], third, rows_of("few", [31.0], share=0.6)])
    summary = summarize(rows, ["full", "plain", "few", "absent"], [2.0, 3.0])
    row = summary[summary["variant"] == "plain"].iloc[0]
    assert (row["psnr"], row["difference"]) == (42.5, -2.5)
    assert (row["low"], row["high"]) == (-4.0, -1.0)
    text = page(summary, {"full": "all", "plain": "plainly", "few": "fewer"}, "a model", "a CPU")
    assert "| full | all | 45.0 | 70.0 |" in text
    assert "| plain | plainly | 42.5 (-2.5 [-4.0, -1.0]) | - |" in text
    assert "| few | fewer | 31.0 (+1.0) | - |" in text
    assert "* few: 1 videos" in text
    assert "* few: computes 60.0% of the steps at 2x" in text


def test_intervals_of_many_videos_are_those_of_the_normal_distribution(rng):
    base, off = rng.normal(40, 8, size=400), rng.normal(-1, 2, size=400)
    rows = pd.concat([rows_of(FULL, base), rows_of("even", base + off)])
    row = summarize(rows, [FULL, "even"], [2.0]).iloc[1]
    around = np.array([-1.96, 1.96]) * off.std() / 20
    assert [row["low"], row["high"]] == pytest.approx(off.mean() + around, abs=0.03)


def test_networks_differ_in_what_they_are_called_after(tmp_path):
    first = write_trace_set(tmp_path / "first", prompts=6, seeds=2)
    second = write_trace_set(tmp_path / "second", prompts=6)
    found = trainings([first, second])
    sizes = {name: len(each.generations) for name, each in found.items()}
    assert sizes == {
        **{"full": 18, "without prompt": 18, "shuffled prompt": 18, "no on-policy round": 12},
        **{"5 generations": 5, "10 generations": 10},
    }
    assert [found[name].use for name in list(sizes)[1:4]] == [
        *("without prompt", "shuffled prompt", "prompt")
    ]
    names = [each.trace["generation_id"] for each in found["5 generations"].generations]
    assert names == [f"{number:05d}" for number in range(5)]
    assert "no on-policy round" not in trainings([first])
    third = write_trace_set(tmp_path / "third", prompts=6, seeds=6)
    larger = trainings([first, second], [third])
    assert {name: len(each.generations) for name, each in larger.items()} == {
        **sizes,
        **{"20 generations": 20, "50 generations": 50},
    }
    ids, own = (
        [each.trace["generation_id"] for each in networks.generations]
        for networks in (larger["50 generations"], found["full"])
    )
    assert ids == [*own, *(f"{number:05d}" for number in range(32))]


def test_configurations_take_turns(profiled):
    many = load_generations([profiled])
    other = [dataclasses.replace(each, trace={**each.trace, "height": 64}) for each in many]
    heights = [int(each.trace["height"]) for each in in_turns([*many, *other])]
    assert heights == [32, 64] * 3
    assert in_turns(many) == many


def test_a_trained_network_is_not_trained_again(tmp_path, monkeypatch):
    generations = load_generations([write_trace_set(tmp_path / "traces")])
    training = Training("", generations, "without prompt")
    once = training.run(tmp_path / "policy", max_epochs=1, batch_size=64)
    monkeypatch.setattr("benchmarks.ablation_training.fit", pytest.fail)
    again = training.run(tmp_path / "policy", max_epochs=1, batch_size=64)
    assert again.digest() == once.digest()
    with pytest.raises(UserError):
        dataclasses.replace(training, generations=generations[1:]).run(
            tmp_path / "policy", max_epochs=1, batch_size=64
        )


def test_foreseen_are_errors_of_prompts_that_were_not_trained_on(tmp_path):
    known, more = (
        write_trace_set(tmp_path / str(count), prompts=count, seeds=2) for count in (5, 8)
    )
    training = Training("", load_generations([known]))
    policy = training.run(tmp_path / "policy", max_epochs=1, batch_size=64)
    fresh = [g for g in load_generations([more]) if g.trace["prompt"] >= "prompt 5"]
    data = gather_rollouts(make_buckets(fresh))
    said = np.concatenate([predicted_damage(policy.model, group).numpy() for group in data])
    seen = np.concatenate([group.log_final_error.numpy() for group in data])
    ranks = np.argsort(np.argsort([said, seen], axis=1), axis=1)
    count, correlation = foreseen(policy, [known], [more])
    assert 6 <= count == len(seen) <= 12  # two roll-outs of each of six; some skip nothing
    assert correlation == pytest.approx(np.corrcoef(ranks)[0, 1])


@pytest.fixture(scope="module")
def policy(profiled):
    """It knows its traces' kernel, and nothing of the prompt."""
    generations = load_generations([profiled])
    config = TrainConfig([profiled], profiled / "unused")
    data = TraceData(*split_by_prompt(generations, 0.34, 0), config)
    module = ReuseTraining.for_data(config, data, fit_reaction(data.train_rollouts))
    model = module.model.requires_grad_(False)
    costs = measured_costs(generations) | {"overhead_seconds": 0.0}
    return LearnedPolicy(model, fingerprint_of(generations[0].trace), costs)


@pytest.fixture(scope="module")
def bench(pipe):
    return Bench(pipe, VIDEO)


@pytest.mark.parametrize("speedup", [1.3, 2.5])
def test_nothing_changed_is_the_policy(bench, policy, speedup):
    """At its own costs, which then are those of the computed steps alone."""
    wanted = policy.at(speedup).begin(bench._generation)
    plan = Variant("").plan(policy, bench._generation, bench.own, speedup)
    assert (plan.actions == wanted.actions).all()
    assert plan.weights == pytest.approx(wanted.weights)


def test_what_the_bench_records_are_the_guided_predictions(pipe, bench):
    seen = []
    handle = pipe.transformer.register_forward_hook(
        lambda _, args, output: seen.append(output[0][:, :4].double())
    )
    Bench(pipe, VIDEO)
    handle.remove()
    guidance = PROFILED_CONFIG.guidance_scale
    outputs = seen[-PROFILED_CONFIG.num_inference_steps :]
    guided = torch.stack([(u + guidance * (c - u)).flatten() for u, c in outputs])
    true = (guided @ guided.T / guided.square().sum(dim=1).mean()).numpy()
    assert bench.own == pytest.approx(true, abs=0.1)


def test_every_variant_computes_as_many_steps_and_the_search_no_worse(bench, policy):
    for name, variant in ablations.VARIANTS.items():
        row = bench.planned(name, policy, variant, 2.5)
        share = 0.6 if name.startswith("Foresight") else 0.4  # its warm-up is that long
        assert row["compute_fraction"] == pytest.approx(share)
    full = bench.planned(FULL, policy, Variant(""), 2.5)
    found = bench.searched("searched", policy, 2.5, 4)
    assert found["final_error"] <= full["final_error"]
    assert found["compute_fraction"] == full["compute_fraction"]


def test_an_interrupted_run_goes_on(pipe, policy, tmp_path, monkeypatch):
    even = {"even spacing": PLANNED["even spacing"]}
    monkeypatch.setattr(ablations, "VARIANTS", even)
    networks = {FULL: policy}
    videos = [Video(prompt, 7, PROFILED_CONFIG) for prompt in PROFILED_PROMPTS[:2]]
    settings = {"work": tmp_path, "speedups": (1.5, 2.4), "evaluations": 1}
    planned, calls = Bench.planned, []

    def stop(self, *job):
        calls.append((self._video.prompt.text, job[0], job[3]))
        if len(calls) == 6:
            raise KeyboardInterrupt
        return planned(self, *job)

    monkeypatch.setattr(Bench, "planned", stop)
    with pytest.raises(KeyboardInterrupt):
        ablations.ablate(pipe, networks, videos, **settings)
    rows = ablations.ablate(pipe, networks, videos, **settings)
    assert len(calls) == 1 + len(set(calls)) == 9
    assert (rows["compute_fraction"] * 5).round(4).tolist() == [3, 2, 3, 2, 2] * 2
    again = ablations.ablate(pipe, networks, videos, **settings)
    pd.testing.assert_frame_equal(rows, again)
    assert len(calls) == 9
    with pytest.raises(UserError, match="evaluations"):
        ablations.ablate(pipe, networks, videos, **{**settings, "evaluations": 2})


def test_bad_input_ends_in_one_line(tmp_path, capsys):
    arguments = ["--model", "no-such-model", "--traces", str(tmp_path), "--prompts", "none.txt"]
    arguments += ["--configs", "none.json", "--work", str(tmp_path / "w"), "--output", "out.csv"]
    with pytest.raises(SystemExit) as stop:
        ablations.main(arguments)
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "none.txt" in line
