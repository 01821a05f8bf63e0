import dataclasses
import json
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
import synthetic_traces
import torch
from synthetic_traces import MODEL, NUM_BLOCKS, NUM_STEPS, write_trace_set

from foresight.config import UserError
from foresight.plan import Plan, plain_weights
from foresight.policies.learned import LearnedPolicy
from foresight.policies.reaction import ReactionModel
from foresight.traces import TraceSet
from policy_training import labels
from policy_training.baselines import GroupMean
from policy_training.cli import main
from policy_training.config import TrainConfig
from policy_training.dataset import QueryBatches, TraceData
from policy_training.generations import load_generations, make_buckets, split_by_prompt
from policy_training.module import ReuseTraining
from policy_training.promise import quality_promise
from policy_training.reaction import fit_reaction, gather_reactions
from policy_training.rollouts import gather_rollouts
from policy_training.train import train


@pytest.fixture(scope="module")
def traces(tmp_path_factory):
    return write_trace_set(tmp_path_factory.mktemp("traces") / "set", prompts=6, seeds=2)


@pytest.fixture
def vectors():
    """Residuals of two generations, (2, S, d)."""
    return torch.randn(2, 6, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def settings(traces, output, **changes):
    few = {"max_epochs": 2, "batch_size": 64, "ablate": False}
    return TrainConfig(dirs=[traces], output=output, **{**few, **changes})


def files_below(folder):
    return sorted(path.name for path in folder.rglob("*")) if folder.exists() else []


def all_queries(vectors):
    triples = [(s, a, p) for s in range(6) for a in range(s) for p in range(a)]
    rows = torch.tensor([0, 1]).repeat_interleave(len(triples))
    steps = torch.tensor(triples * 2)
    query = labels.moments(vectors @ vectors.mT, rows, steps)
    s, a, p = (vectors[rows, steps[:, i]] for i in range(3))
    return query, s, a, p


def test_labels_agree_with_explicit_residuals(vectors):
    query, s, a, p = all_queries(vectors)
    torch.testing.assert_close(query.change, (s - a).square().sum(1).float())
    torch.testing.assert_close(query.own, s.square().sum(1).float())
    betas = torch.linspace(-1, 2, len(s))
    left = (s - (a + betas[:, None].double() * (a - p))).square().sum(1)
    torch.testing.assert_close(labels.forecast_error(query, betas), left.float())
    safe = (s - a).norm(dim=1) <= 1.4 * s.norm(dim=1)
    assert 0 < safe.sum() < len(safe)
    assert (labels.safe_to_reuse(query, 1.4) == safe).all()


def test_best_coefficient_is_least_squares(vectors):
    query, s, a, p = all_queries(vectors)
    found = labels.best_coefficient(query)
    for row in range(0, len(s), 7):
        fitted = torch.linalg.lstsq((a - p)[row, :, None], (s - a)[row, :, None]).solution
        assert found[row] == pytest.approx(fitted.item(), rel=1e-4)
    least = labels.forecast_error(query, found)
    assert (least <= labels.forecast_error(query, found + 0.05)).all()
    assert (least <= labels.forecast_error(query, found - 0.05)).all()


def test_without_an_earlier_residual_there_is_nothing_to_forecast(vectors):
    steps = torch.tensor([[3, 0, 0]])
    query = labels.moments(vectors @ vectors.mT, torch.tensor([0]), steps)
    assert labels.best_coefficient(query).item() == 0
    assert labels.forecast_error(query, torch.tensor([0.7])).item() == query.change.item()


@pytest.mark.parametrize("seed", range(5))
def test_split_keeps_every_prompt_on_one_side(traces, seed):
    generations = load_generations([traces])
    train_side, held_out = split_by_prompt(generations, 0.3, seed)
    prompts = [{g.trace["prompt"] for g in side} for side in (train_side, held_out)]
    assert prompts[0]
    assert prompts[1]
    assert not prompts[0] & prompts[1]
    assert len(train_side) + len(held_out) == len(generations)


def test_queries_are_answered_by_the_trace_they_came_from(tmp_path):
    buckets = make_buckets(load_generations([write_trace_set(tmp_path / "set", prompts=4)]))
    batch = QueryBatches(buckets, batch_size=200, num_batches=1, seed=3)[0]
    s, a, p = batch.steps.unbind(1)
    assert ((s > a) & ((a > p) | (a == 0) & (p == 0))).all()
    assert set(batch.entity.tolist()) == set(range(NUM_BLOCKS + 1))
    bucket = buckets[0]
    for row in range(0, 200, 20):
        index = (bucket.embedding == batch.embedding[row]).all(dim=1).nonzero().item()
        gram = bucket.gram[index, batch.entity[row]].double()
        change = gram[s[row], s[row]] + gram[a[row], a[row]] - 2 * gram[s[row], a[row]]
        assert batch.moments.change[row].item() == pytest.approx(change.item(), rel=1e-3, abs=1e-6)
        assert (batch.levels[row] == bucket.sigmas[index, batch.steps[row]]).all()


def test_ablations_change_the_prompt_and_nothing_else(traces):
    generations = load_generations([traces])
    own, without, shuffled = (
        make_buckets(generations, use)[0] for use in ("prompt", "without prompt", "shuffled prompt")
    )
    assert not without.embedding.any()
    assert (own.embedding != shuffled.embedding).any(dim=1).all()
    assert sorted(own.embedding.tolist()) == sorted(shuffled.embedding.tolist())
    assert torch.equal(own.gram, shuffled.gram)


def known_plan() -> Plan:
    """Steps 4 and 5 are skipped and made good, and so is step 8."""
    computed, weights = ~np.isin(np.arange(NUM_STEPS), (4, 5, 8)), plain_weights(NUM_STEPS)
    weights[4:6] = (1.5, -0.5, 0), (1.25, 0.25, -0.5)
    weights[[6, 9]] = (1.25, -0.5, 0), (1.125, -0.125, 0)
    return Plan.of_output(computed, weights, NUM_BLOCKS)


@pytest.fixture
def known_set(tmp_path):
    """A trace set of two generations: the first has roll-outs of a known plan and of none."""
    folder = write_trace_set(tmp_path / "known", prompts=2)
    found = TraceSet.open(folder)
    row = found.traces[0]
    nothing = Plan.whole_stack(np.ones(NUM_STEPS, bool), np.zeros(NUM_STEPS), NUM_BLOCKS)
    rows = [synthetic_traces.rollout(row, plan) for plan in (known_plan(), nothing)]
    found.add(0, row, rows)
    return folder


def test_roll_outs_are_grouped_with_what_is_known_of_their_generation(known_set):
    generations = load_generations([known_set])
    (group,) = gather_rollouts(make_buckets(generations))
    first, second = generations
    assert len(group.psnr) == 1 + len(second.rollouts)  # that of nothing skipped tells nothing
    assert np.flatnonzero(~group.computed[0]).tolist() == [4, 5, 8]
    assert (group.weights[0] == known_plan().weights).all()
    for gram, generation in zip(group.grams, (first, second, second), strict=True):
        assert gram == pytest.approx(generation.trace["group_gram"][1], rel=1e-6)
    assert group.log_final_error[0] == pytest.approx(np.log(first.rollouts[0]["final_error"]))
    assert group.sigmas.numpy() == pytest.approx(first.trace["sigmas"])
    assert group.solver.response == pytest.approx(first.trace["response"])
    assert group.solver.decay == pytest.approx(first.trace["decay"])
    for index, generation in enumerate((first, second, second)):
        embedding = generation.trace["prompt_embedding"]
        assert group.embedding[index].numpy() == pytest.approx(embedding, rel=1e-6)


@pytest.mark.parametrize("part", ["response", "decay"])
def test_solvers_of_equal_sigmas_are_kept_apart(traces, part):
    generations = load_generations([traces])
    plain = generations[0].trace[part]
    for generation in generations[1::2]:
        generation.trace[part] = 2 * generation.trace[part]
    groups = gather_rollouts(make_buckets(generations))
    for factor, group in enumerate(groups, start=1):
        assert getattr(group.solver, part) == pytest.approx(factor * plain, rel=1e-6)
    assert len(groups) == 2


def without_columns(folder, part, *names):
    for path in (folder / part).glob("*.parquet"):
        pq.write_table(pq.read_table(path).drop_columns(list(names)), path)


@pytest.mark.parametrize(
    ("part", "names"),
    [
        ("data", ["decay"]),
        ("rollouts", ["weights"]),
        ("rollouts", ["reaction"]),
        ("rollouts", ["reaction", "weights"]),
    ],
    ids=str,
)
def test_traces_of_an_earlier_version_are_refused(tmp_path, part, names):
    folder = write_trace_set(tmp_path / "set", prompts=2)
    without_columns(folder, part, *names)
    with pytest.raises(UserError, match=rf"earlier version \(it lacks {', '.join(names)}\)"):
        load_generations([folder])


def test_group_mean_falls_back_to_coarser_keys():
    keys = (np.array([[0, 1], [0, 1], [0, 2]]), np.array([[0], [0], [0]]))
    fitted = GroupMean().fit(keys, np.array([1.0, 3.0, 8.0]))
    asked = (np.array([[0, 1], [0, 9], [5, 5]]), np.array([[0], [0], [5]]))
    assert fitted.predict(asked).tolist() == [2.0, 4.0, 4.0]


def fitted_reaction(generations) -> tuple[ReactionModel, np.ndarray]:
    """And the noise levels that were seen."""
    model, buckets = ReactionModel(), make_buckets(generations)
    fit_reaction(model, buckets, gather_rollouts(buckets))
    return model, gather_reactions(buckets)[0]


def test_the_reaction_that_made_the_roll_outs_is_found_again(traces):
    """A curve of the very form that is fitted: what is left is the prior's."""
    model, sigmas = fitted_reaction(load_generations([traces]))
    inside = np.linspace(sigmas.min(), sigmas.max(), 20)
    found, true = np.stack(model.at(inside)), np.stack(synthetic_traces.reaction(inside))
    assert model.persistence.item() == pytest.approx(0, abs=0.051)
    assert np.hypot(*found[1:]) == pytest.approx(true[2], rel=0.02)
    assert found[0] == pytest.approx(true[0], rel=0.02, abs=0.01)
    beyond = model.at(np.array([sigmas.max() + 0.005, sigmas.min() - 0.05]))
    assert np.stack(beyond) == pytest.approx(found[:, [-1, 0]])


@pytest.mark.parametrize("persistence", [0.3, 0.6, 0.9])
def test_what_persists_is_told_by_errors_at_the_end(traces, persistence):
    """Of roll-outs whose steps were measured as if nothing did."""
    generations = load_generations([traces])
    for generation in generations:
        sigmas = generation.trace["sigmas"]
        answer = synthetic_traces.reaction(sigmas, persistence)
        outputs = synthetic_traces.outputs_of(generation.trace["group_gram"][1])
        for row in generation.rollouts:
            plan = Plan.of_output(row["plan"][:, 0] == 0, row["weights"], NUM_BLOCKS)
            off, _ = synthetic_traces.run(outputs, sigmas, plan, answer)
            row["final_error"] = off @ off
    model, _ = fitted_reaction(generations)
    assert model.persistence.item() == pytest.approx(persistence, abs=0.051)


def test_measurements_are_those_of_steps_that_latents_were_off_at(known_set):
    """Those of the known plan after step 4, where it was computed; and none of nothing skipped."""
    generations = load_generations([known_set])
    sigmas, measured = gather_reactions(make_buckets(generations[:1]))
    row = generations[0].trace["sigmas"]
    assert sigmas == pytest.approx(row[[6, 7, 9]])
    expected = generations[0].rollouts[0]["reaction"][[6, 7, 9]]
    assert measured == pytest.approx(expected)
    known = synthetic_traces.reaction(row[[6, 7, 9]])
    given, inner, answer = measured.T
    assert inner / given == pytest.approx(known.coherent, rel=1e-4)
    assert answer / given == pytest.approx(known.coherent**2 + known.fresh**2, rel=1e-4)


def test_without_roll_outs_the_reaction_stays_as_it_is(traces):
    generations = load_generations([traces])
    model, _ = fitted_reaction([dataclasses.replace(each, rollouts=[]) for each in generations])
    assert not any(value.any() for value in model.state_dict().values())


def test_steps_with_nothing_to_say_do_not_count(traces):
    """Errors that are rounding, and roll-outs that measured nothing."""
    generations = load_generations([traces])
    once, _ = fitted_reaction(generations)
    for row in (row for generation in generations for row in generation.rollouts):
        row["reaction"][row["reaction"][:, 0] < 1e-9] = 1e-12, 5e-12, 1e-10
    nothing = {**generations[0].rollouts[0], "reaction": np.zeros((NUM_STEPS, 3))}
    generations[0].rollouts.append(nothing)
    again, _ = fitted_reaction(generations)
    for name, value in once.state_dict().items():
        assert torch.allclose(value, again.state_dict()[name]), name


def test_training_lowers_the_loss(traces, tmp_path):
    generations = load_generations([traces])
    config = settings(traces, tmp_path, max_epochs=1, batch_size=256)
    data = TraceData(*split_by_prompt(generations, 0.3, 0), config)
    torch.manual_seed(0)
    module = ReuseTraining.for_data(config, data)
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
    batches = QueryBatches(data.train_buckets, batch_size=256, num_batches=80, seed=0)
    totals = []
    for queries in map(batches.__getitem__, range(len(batches))):
        parts = [*module.losses(queries, module(queries)).values()]
        total = torch.stack(parts).sum()
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(total.item())
    # From what the kernel answers untrained, which is most of the way.
    assert np.mean(totals[-10:]) < np.mean(totals[:5]) - 0.5


def test_train_exports_a_policy_that_loads(traces, tmp_path):
    output = tmp_path / "policy"
    assert train(settings(traces, output, ablate=True)) == output
    policy = LearnedPolicy.from_pretrained(output)
    assert policy.fingerprint == MODEL
    assert len(policy.costs["block_seconds"]) == NUM_BLOCKS
    card = (output / "README.md").read_text("utf-8")
    for row in ("this policy", "without prompt", "shuffled prompt", "gradient boosting"):
        assert f"| {row} |" in card
    assert "What the prompt embedding adds:" in card
    assert any((output / "training" / "prompt").glob("events.out.tfevents.*"))
    assert not (output / "training" / "export").exists()
    kept = json.loads((output / "training" / "run.json").read_text("utf-8"))
    assert kept["batch_size"] == 64

    written = (output / "model.safetensors").stat().st_mtime_ns
    train(settings(traces, output, ablate=True))
    assert (output / "model.safetensors").stat().st_mtime_ns == written


@pytest.fixture
def module(traces, tmp_path):
    """Untrained but for what is fitted in closed form, and the training side's roll-outs."""
    config = settings(traces, tmp_path)
    data = TraceData(*split_by_prompt(load_generations([traces]), 0.3, 0), config)
    return ReuseTraining.for_data(config, data), data


def test_damage_before_anything_is_run_is_that_of_the_mean_generation(module):
    """Carried out in vectors that have the mean inner products."""
    module, data = module
    (bucket,), (group,) = data.train_buckets, data.train_rollouts
    outputs = synthetic_traces.outputs_of(bucket.gram[:, 0].double().mean(dim=0).numpy())
    sigmas = group.sigmas.double().numpy()
    answer = module.model.reaction.at(sigmas)
    assert answer.fresh.max() > 0.5
    found = module.predicted_damage(group)
    for place, (computed, weights) in enumerate(zip(group.computed, group.weights, strict=True)):
        plan = Plan.of_output(computed, weights, NUM_BLOCKS)
        off, _ = synthetic_traces.run(outputs, sigmas, plan, answer)
        assert found[place].item() == pytest.approx(np.log(off @ off), abs=0.01)


def test_damage_grows_with_the_pace_that_the_network_expects(module):
    """By as much, where the latest prediction is reused as it is."""
    module, data = module
    (group,) = data.train_rollouts
    group = group._replace(weights=np.stack([plain_weights(NUM_STEPS)] * len(group.psnr)))
    found = module.predicted_damage(group)
    with torch.no_grad():
        module.model.trunk[-1].bias[1] += 0.75
    assert module.predicted_damage(group).numpy() == pytest.approx(found.numpy() + 0.75, abs=1e-4)


def test_the_promise_is_fitted_on_one_side_and_measured_on_the_other(traces, tmp_path):
    """PSNR made a known line of the predicted damage, off by known misses where held out."""
    config = settings(traces, tmp_path)
    data = TraceData(*split_by_prompt(load_generations([traces]), 0.34, 0), config)
    module = ReuseTraining.for_data(config, data)
    misses = []
    for side, off in ((data.train_rollouts, 0.0), (data.held_out_rollouts, 1.0)):
        for index, group in enumerate(side):
            with torch.no_grad():
                line = 20 - 3 * module.predicted_damage(group)
            miss = off * torch.linspace(-2, 1, len(line))
            misses += miss.tolist() if off else []
            side[index] = group._replace(psnr=line + miss)
    promise = quality_promise(module, data)
    assert promise is not None
    assert (promise.offset, promise.slope) == pytest.approx((20, -3), abs=1e-3)
    assert promise.misses == pytest.approx(sorted(misses), abs=1e-3)
    data.held_out_rollouts.clear()
    assert quality_promise(module, data) is None


class InterruptedTrainingError(Exception):
    pass


def test_interrupted_training_goes_on_as_if_uninterrupted(traces, tmp_path, monkeypatch):
    whole = train(settings(traces, tmp_path / "whole", max_epochs=4))

    def stop(module):
        if module.current_epoch == 2:
            raise InterruptedTrainingError

    config = settings(traces, tmp_path / "parts", max_epochs=4)
    with monkeypatch.context() as patch:
        patch.setattr(ReuseTraining, "on_train_epoch_start", stop)
        with pytest.raises(InterruptedTrainingError):
            train(config)
    assert not (config.output / "config.json").exists()
    epochs = []
    with monkeypatch.context() as patch:
        patch.setattr(
            ReuseTraining, "on_train_epoch_start", lambda self: epochs.append(self.current_epoch)
        )
        train(config)
    assert epochs == [2, 3]
    expected = LearnedPolicy.from_pretrained(whole).model.state_dict()
    found = LearnedPolicy.from_pretrained(config.output).model.state_dict()
    for name, value in expected.items():
        assert torch.equal(value, found[name]), name


def test_other_settings_or_traces_are_refused(traces, tmp_path):
    output = tmp_path / "policy"
    train(settings(traces, output))
    before = files_below(output)
    with pytest.raises(UserError, match=r"--output .*\(lr\)"):
        train(settings(traces, output, lr=0.1))
    other = write_trace_set(tmp_path / "other", prompts=4)
    with pytest.raises(UserError, match="traces"):
        train(settings(other, output))
    assert files_below(output) == before


def test_trace_sets_of_different_models_are_refused(traces, tmp_path, monkeypatch):
    monkeypatch.setitem(MODEL, "weights_hash", "fedcba9876543210")
    other = write_trace_set(tmp_path / "other", prompts=2)
    with pytest.raises(UserError, match="another model"):
        load_generations([traces, other])


def run_cli(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    return message


def test_bad_values_end_in_one_line(traces, tmp_path, capsys):
    output = tmp_path / "policy"
    cases = {
        ("--lr", "-1"): "--lr",
        ("--max_epochs", "many"): "max_epochs",
        ("--validation_fraction", "1.5"): "--validation_fraction",
        ("--no-such-flag",): "--no-such-flag",
    }
    for flags, named in cases.items():
        assert named in run_cli(capsys, traces, "--output", output, *flags)
    assert "dirs" in run_cli(capsys, "--output", output)
    assert not output.exists()


def test_bad_traces_end_in_one_line_and_write_nothing(tmp_path, capsys):
    output = tmp_path / "policy"
    missing = tmp_path / "missing"
    assert str(missing) in run_cli(capsys, missing, "--output", output)
    empty = tmp_path / "empty"
    empty.mkdir()
    assert str(empty) in run_cli(capsys, empty, "--output", output)
    one_prompt = write_trace_set(tmp_path / "one", prompts=1, seeds=2)
    assert "at least two prompts" in run_cli(capsys, one_prompt, "--output", output)
    truncated = write_trace_set(tmp_path / "truncated", prompts=3)
    file = next((truncated / "data").glob("*.parquet"))
    file.write_bytes(file.read_bytes()[:200])
    assert file.name in run_cli(capsys, truncated, "--output", output)
    nothing = np.full((NUM_BLOCKS, NUM_STEPS, NUM_STEPS), np.nan)
    not_numbers = write_trace_set(tmp_path / "nan", prompts=2, gram=nothing)
    assert "NaN" in run_cli(capsys, not_numbers, "--output", output)
    assert not output.exists()


def test_a_foreign_output_folder_is_left_alone(traces, tmp_path, capsys):
    output = tmp_path / "mine"
    output.mkdir()
    (output / "notes.txt").write_text("keep", "utf-8")
    assert str(output) in run_cli(capsys, traces, "--output", output)
    assert files_below(output) == ["notes.txt"]


def test_help_imports_no_torch():
    code = (
        "import sys\n"
        "from policy_training.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as stop: assert stop.code == 0\n"
        "heavy = [m for m in ('torch', 'lightning', 'sklearn', 'diffusers') if m in sys.modules]\n"
        "assert not heavy, heavy\n"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert shown.returncode == 0, shown.stderr
    assert "--tolerance" in shown.stdout
