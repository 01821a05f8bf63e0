import dataclasses
import json
import re
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
from foresight.policies.multistep import carry_out
from foresight.policies.reaction import Reaction, ReactionModel
from foresight.solver import Solver
from foresight.traces import TraceSet
from policy_training import labels
from policy_training import reaction as fitting
from policy_training.baselines import GroupMean
from policy_training.card import cost_sentence
from policy_training.cli import main
from policy_training.config import TrainConfig
from policy_training.damage import predicted_damage
from policy_training.dataset import QueryBatches, TraceData
from policy_training.generations import load_generations, make_buckets, split_by_prompt
from policy_training.module import ReuseTraining, predictions
from policy_training.promise import quality_promise
from policy_training.reaction import fit_reaction, replay
from policy_training.rollouts import Rollouts, gather_rollouts
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
    assert group.guidance_scale == 4
    for place, row in enumerate((first.rollouts[0], *second.rollouts)):
        assert group.reactions[place].numpy() == pytest.approx(np.stack(row["reaction"]))
    assert np.flatnonzero(group.reactions[0].any(dim=1)).tolist() == [6, 7, 9]
    known = synthetic_traces.reaction(first.trace["sigmas"])
    given, inner, answer = group.reactions[0, 6].tolist()  # of an error along predictions
    assert inner / given == pytest.approx(known.coherent[6], rel=1e-4)
    gain = known.coherent[6] ** 2 + known.spread[6] ** 2
    assert answer / given == pytest.approx(gain, rel=1e-4)
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


def test_guidance_scales_are_kept_apart(traces):
    generations = load_generations([traces])
    for generation in generations[1::3]:
        generation.trace["guidance_scale"] = 7.5
    groups = gather_rollouts(make_buckets(generations))
    assert [group.guidance_scale for group in groups] == [4.0, 7.5]
    parts = generations[::3] + generations[2::3], generations[1::3]
    for group, members in zip(groups, parts, strict=True):
        rows = [row for each in members for row in each.rollouts]
        found, expected = group.log_final_error.exp().tolist(), [row["final_error"] for row in rows]
        assert sorted(found) == pytest.approx(sorted(expected), rel=1e-5)


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


# How the model answers latents that are off.


def random_solver(rng: np.random.Generator) -> Solver:
    """One that weighs earlier predictions anew at every step."""
    response = np.triu(rng.normal(size=(NUM_STEPS, NUM_STEPS)))
    return Solver(response, rng.uniform(size=NUM_STEPS))


def replayed(group: Rollouts, reaction: Reaction) -> np.ndarray:
    """(R, S, 3)"""
    path = torch.from_numpy(np.stack([synthetic_traces.outputs_of(gram) for gram in group.grams]))
    return replay(group, path, tuple(map(torch.from_numpy, reaction))).numpy()


@pytest.mark.parametrize("lasting", [0.0, 0.4, 1.0])
def test_replayed_roll_outs_are_off_by_what_vectors_are(traces, lasting):
    """Step by step; the latents', the answer's and their product, where something was computed."""
    (group,) = gather_rollouts(make_buckets(load_generations([traces])))
    sigmas, count = group.sigmas.double().numpy(), 0
    answer = synthetic_traces.reaction(sigmas)
    whole = answer._replace(lasting=np.full(NUM_STEPS, lasting))
    for which, found in enumerate(replayed(group, whole)):
        computed = group.computed[which]
        plan = Plan.of_output(computed, group.weights[which], NUM_BLOCKS)
        outputs = synthetic_traces.outputs_of(group.grams[which])
        _, expected = synthetic_traces.run(outputs, sigmas, plan, answer, lasting)
        told = computed & (expected[:, 0] > 1e-9)
        count += told.sum()
        assert found[told] == pytest.approx(expected[told], rel=1e-5, abs=1e-10)
    assert count > 20


def test_replayed_latents_are_off_by_what_a_plan_is_carried_out_to(traces, rng):
    """Cut short before every step, under a solver that looks back."""
    (group,) = gather_rollouts(make_buckets(load_generations([traces])))
    solver, answer = random_solver(rng), Reaction(*rng.uniform(0, 1, size=(3, NUM_STEPS)))
    energies = replayed(group._replace(solver=solver), answer)[..., 0]
    assert not energies[:, 0].any()
    for which, gram in enumerate(group.grams):
        outputs = synthetic_traces.outputs_of(gram)
        for steps in range(1, NUM_STEPS):
            short = Solver(solver.response[:steps, :steps], solver.decay[:steps])
            facts = outputs[:steps], short, Reaction(*(part[:steps] for part in answer))
            plan = group.computed[[which], :steps], group.weights[[which], :steps]
            (expected,) = carry_out(*facts, *plan)[1]
            assert energies[which, steps] == pytest.approx(expected, rel=1e-5, abs=1e-11)


def answered(generations, stronger=1.0, seed=0, lasting=0.6):
    """Generations with many roll-outs of made-up plans, which a known reaction answered."""
    rng, found = np.random.default_rng(seed), []
    for generation in generations:
        row, rollouts = generation.trace, []
        answer = synthetic_traces.reaction(row["sigmas"], stronger)
        for _ in range(6):
            computed = rng.uniform(size=NUM_STEPS) < 0.7
            computed[0], computed[rng.integers(1, 4)] = True, False
            plan = Plan.of_output(computed, plain_weights(NUM_STEPS), NUM_BLOCKS)
            rollouts.append(synthetic_traces.rollout(row, plan, answer, lasting))
        found.append(dataclasses.replace(generation, rollouts=rollouts))
    return found


def fitted(generations) -> ReactionModel:
    return fit_reaction(gather_rollouts(make_buckets(generations)))


def assert_found(
    model: ReactionModel, guidance: float, stronger: float, within: float, lasting: float = 0.6
):
    """The reaction that made roll-outs, over the noise levels of all steps but the first."""
    sigmas = np.linspace(0.9, 0.1, 20)
    true, found = synthetic_traces.reaction(sigmas, stronger), model.at(sigmas, guidance)
    (gain, share), (expected, cosine) = (
        (np.hypot(*each[:2]), each.coherent / np.hypot(*each[:2])) for each in (found, true)
    )
    assert gain == pytest.approx(expected, rel=within)
    assert share == pytest.approx(cosine, abs=within)
    assert found.lasting == pytest.approx(np.full(20, lasting), abs=2.5 * within)


@pytest.fixture(params=[1e-6, fitting.PRIOR], ids=["hardly any prior", "the usual prior"])
def within(request, monkeypatch) -> float:
    """How closely curves are found again: what the prior keeps them off by."""
    monkeypatch.setattr(fitting, "PRIOR", request.param)
    return 5e-3 if request.param < 1e-5 else 0.05


@pytest.mark.parametrize(("stronger", "lasting"), [(0.6, 0.6), (1.0, 0.3), (1.0, 0.8), (1.5, 0.6)])
def test_the_reaction_that_made_the_roll_outs_is_found_again(traces, stronger, lasting, within):
    """Curves of the very form that is fitted, however much lasts; with guidance of 4 only."""
    model = fitted(answered(load_generations([traces]), stronger, lasting=lasting))
    for guidance in (1.0, 4.0, 9.0):
        assert_found(model, guidance, stronger, within, lasting)


def two_scales(generations):
    """Half of them with guidance of 4, and half with 9 and a stronger reaction."""
    weak, strong = answered(generations[::2]), answered(generations[1::2], stronger=1.6)
    for generation in strong:
        generation.trace["guidance_scale"] = 9.0
    return [*weak, *strong]


def test_a_stronger_reaction_under_stronger_guidance_is_found_again(traces, within):
    """Between the two that were seen, on a log scale, it lies in between."""
    model = fitted(two_scales(load_generations([traces])))
    for guidance, stronger in ((1.0, 1.0), (4.0, 1.0), (6.0, 1.6**0.5), (9.0, 1.6), (20.0, 1.6)):
        assert_found(model, guidance, stronger, within)


def misses(model: ReactionModel, generations) -> np.ndarray:
    """Log ratios of energies at the end, told by a model and measured."""
    found = []
    for group in gather_rollouts(make_buckets(generations)):
        reaction = model.at(group.sigmas.numpy(), group.guidance_scale)
        for which, gram in enumerate(group.grams):
            facts = synthetic_traces.outputs_of(gram), group.solver, reaction
            (energy,) = carry_out(*facts, group.computed[[which]], group.weights[[which]])[1]
            found.append(np.log(energy) - group.log_final_error[which].item())
    return np.array(found)


@pytest.mark.parametrize("stronger", [0.6, 1.0, 1.5])
def test_errors_at_the_end_of_other_roll_outs_are_told(traces, stronger):
    """With the prior as it is."""
    generations = load_generations([traces])
    model = fitted(answered(generations, stronger))
    others = answered(generations, stronger, seed=1)
    known, guessed = (np.abs(misses(each, others)) for each in (model, ReactionModel()))
    assert known.mean() < 0.05
    assert known.mean() < guessed.mean() / 3


def test_where_one_guidance_scale_was_seen_the_curves_do_not_depend_on_it(traces):
    model = fitted(answered(load_generations([traces])))
    sigmas = np.linspace(0.9, 0.1, 7)
    expected = np.stack(model.at(sigmas, 4.0))
    for guidance in (1.0, 2.0, 12.0):
        assert (np.stack(model.at(sigmas, guidance)) == expected).all()


def test_beyond_the_noise_levels_that_were_seen_curves_stay_level(traces):
    model, sigmas = fitted(answered(load_generations([traces]))), np.array([0.99, 0.1])
    ends, beyond = model.at(sigmas, 4.0), model.at(np.array([0.999, 0.05]), 4.0)
    assert np.stack(beyond) == pytest.approx(np.stack(ends), rel=1e-5)
    assert np.abs(ends.coherent[0] - ends.coherent[1]) > 0.1


def assert_same(one: ReactionModel, other: ReactionModel, *, same: bool = True):
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    assert all(torch.equal(first, second) for first, second in pairs) == same


def test_without_roll_outs_the_reaction_stays_as_it_is(traces):
    generations = load_generations([traces])
    silent = [dataclasses.replace(each, rollouts=[]) for each in generations]
    unmeasured = answered(generations)
    for row in (row for generation in unmeasured for row in generation.rollouts):
        row["reaction"] = np.zeros((NUM_STEPS, 3))
    for none in (silent, unmeasured):
        assert_same(fitted(none), ReactionModel())


def test_steps_with_nothing_to_say_do_not_count(traces):
    """Errors that are rounding."""
    plain, changed = (answered(load_generations([traces])) for _ in range(2))
    for row in (row for generation in changed for row in generation.rollouts):
        row["reaction"][row["reaction"][:, 0] < 1e-9] = 1e-12, 5e-12, 1e-10
    assert_same(fitted(plain), fitted(changed))


def test_nothing_is_learned_of_a_video_that_has_become_another_one(traces):
    """From the first step with an error of 1e-3 or more, whatever was measured later."""
    clean, early, late = (answered(load_generations([traces])) for _ in range(3))
    for generations, size in ((clean, None), (early, 2e-3), (late, 2e-4)):
        for row in (row for generation in generations for row in generation.rollouts[:2]):
            measured = row["reaction"]
            step = np.flatnonzero(measured[:, 0])[0]
            if size is None:
                measured[step:] = 0
            else:
                measured[step] = size, 0, 1e-5
                measured[step + 1 :] *= [1, -1, 7]
    assert_same(fitted(clean), fitted(early))
    assert_same(fitted(clean), fitted(late), same=False)


def test_losses_say_how_far_off_answers_are(traces, tmp_path):
    """Each by its formula, in numbers of single queries."""
    config = settings(traces, tmp_path, tolerance=0.4)
    data = TraceData(*split_by_prompt(load_generations([traces]), 0.3, 0), config)
    module, queries = (
        ReuseTraining.for_data(config, data, fit_reaction(data.train_rollouts)),
        data.training_sample(1),
    )
    generator = torch.Generator().manual_seed(0)
    names = ("coefficient", "log_reuse", "log_forecast", "safe")
    out = {name: torch.randn(len(queries.steps), generator=generator) for name in names}
    change, own = (each.double().numpy() for each in (queries.moments.change, queries.moments.own))
    left = labels.forecast_error(queries.moments, out["coefficient"]).double().numpy()

    def huber(found, expected):
        off = np.abs(found.numpy() - expected)
        return np.where(off < 1, off**2 / 2, off - 1 / 2).mean()

    probability = 1 / (1 + np.exp(-out["safe"].double().numpy()))
    safe = np.sqrt(change) <= 0.4 * np.sqrt(own)
    assert 0 < safe.mean() < 1
    expected = {
        "forecast": np.log(left / change).mean(),
        "reuse": huber(out["log_reuse"], np.log(change)),
        "left": huber(out["log_forecast"], np.log(left)),
        "safe": -np.log(np.where(safe, probability, 1 - probability)).mean(),
    }
    found = {name: value.item() for name, value in module.losses(queries, out).items()}
    assert found == pytest.approx(expected, rel=1e-4)
    said = predictions(out)
    assert said.probability == pytest.approx(probability, rel=1e-5)
    assert (said.log_change == out["log_reuse"].numpy()).all()
    assert (said.coefficient == out["coefficient"].numpy()).all()


def test_costs_of_earlier_traces_are_not_made_up(traces):
    generations = load_generations([traces])
    del generations[1].trace["profile_seconds"]
    sentence = cost_sentence(generations, 5.4)
    assert "training 5 s" in sentence
    assert "not recorded" in sentence


def test_training_lowers_the_loss(traces, tmp_path):
    generations = load_generations([traces])
    config = settings(traces, tmp_path, max_epochs=1, batch_size=256)
    data = TraceData(*split_by_prompt(generations, 0.3, 0), config)
    torch.manual_seed(0)
    module = ReuseTraining.for_data(config, data, fit_reaction(data.train_rollouts))
    module.model.prompt_noise = 0.0  # as with many prompts
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
    batches = QueryBatches(data.train_buckets, batch_size=256, num_batches=80, seed=0)

    def total(queries):
        return torch.stack([*module.losses(queries, module(queries)).values()]).sum()

    fresh = data.training_sample()
    untrained = total(fresh).item()
    for queries in map(batches.__getitem__, range(len(batches))):
        loss = total(queries)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    module.eval()
    # From what the kernel answers untrained, which is most of the way.
    assert total(fresh).item() < untrained - 0.5


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
    found = re.search(r"took (\d+) s, .* training (\d+) s .* as (\d+) uncached", card)
    profiling, training, count = map(int, found.groups())
    assert profiling == 9 * len(TraceSet.open(traces).traces)
    assert training > 0
    assert count == pytest.approx((profiling + training) / 0.6, abs=1)  # of 0.6 s each
    trust = policy.model.pace_trust.item()
    assert 0 <= trust <= 1
    assert f"{100 * trust:.0f} % held on these" in card
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
    return ReuseTraining.for_data(config, data, fit_reaction(data.train_rollouts)), data


def test_damage_before_anything_is_run_is_that_of_the_mean_generation(traces, tmp_path):
    """Carried out in vectors that have the mean inner products under the same guidance.

    Generations count in that mean by the inverse of how much they move.
    """
    sides = split_by_prompt(two_scales(load_generations([traces])), 0.3, 0)
    config = settings(traces, tmp_path)
    data = TraceData(*sides, config)
    module = ReuseTraining.for_data(config, data, fit_reaction(data.train_rollouts))
    seen = []
    for group in data.train_rollouts:
        total, weight = np.zeros((NUM_STEPS, NUM_STEPS)), 0.0
        for generation in sides[0]:
            if generation.trace["guidance_scale"] == group.guidance_scale:
                gram = np.asarray(generation.trace["group_gram"][1])
                moved = np.diff(synthetic_traces.outputs_of(gram), axis=0)
                total, weight = total + gram / (moved**2).sum(), weight + 1 / (moved**2).sum()
        outputs, sigmas = synthetic_traces.outputs_of(total / weight), group.sigmas.double().numpy()
        answer = module.model.reaction.at(sigmas, group.guidance_scale)
        assert answer.spread.max() > 0.5
        assert answer.lasting.max() < 0.8
        found = predicted_damage(module.model, group)
        plans = zip(group.computed, group.weights, strict=True)
        for place, (computed, weights) in enumerate(plans):
            plan = Plan.of_output(computed, weights, NUM_BLOCKS)
            off, _ = synthetic_traces.run(outputs, sigmas, plan, answer, answer.lasting)
            assert found[place].item() == pytest.approx(np.log(off @ off), abs=0.01)
        seen.append(group.guidance_scale)
    assert sorted(seen) == [4.0, 9.0]


def test_damage_grows_with_the_pace_that_the_network_expects(module, monkeypatch):
    """By as much, where the latest prediction is reused as it is; prompt by prompt."""
    module, data = module
    (group,) = data.train_rollouts
    group = group._replace(weights=np.stack([plain_weights(NUM_STEPS)] * len(group.psnr)))
    found = predicted_damage(module.model, group)

    def pace(sigmas, prompt, features):
        assert features.shape == (1, 5)
        return torch.cat([torch.zeros(1), prompt[0, :1].expand(len(sigmas) - 1)])

    monkeypatch.setattr(module.model, "log_pace", pace)
    expected = found.numpy() + group.embedding[:, 0].numpy()
    assert predicted_damage(module.model, group).numpy() == pytest.approx(expected, abs=1e-4)


def usual_miss(damage: np.ndarray, psnr: np.ndarray):
    """A line through points, and what they usually miss it by; both functions of damage."""
    slope, offset = np.polyfit(damage, psnr, 1)
    missed = np.abs(psnr - offset - slope * damage)
    rise, usual = np.polyfit(damage, missed, 1)
    least = missed.mean() / 2 if rise > 0 else missed.mean()
    line = (lambda x: usual + rise * x) if rise > 0 else (lambda x: x * 0 + missed.mean())
    return lambda x: offset + slope * x, lambda x: np.maximum(least, line(x))


def told(module, data, rng, noise: float) -> tuple[np.ndarray, ...]:
    """Damage, prompts and made-up PSNRs of all roll-outs, which these are in `data` afterwards."""
    found = []
    for side in data.train_rollouts, data.held_out_rollouts:
        for index, group in enumerate(side):
            damage = predicted_damage(module.model, group).double().numpy()
            miss = noise * rng.normal(size=len(damage)) * (1 + damage - damage.min())
            psnr = torch.from_numpy(20 - 3 * damage + miss)
            side[index] = group._replace(psnr=psnr, planned=np.zeros(len(psnr), bool))
            found.append((damage, psnr.numpy(), group.prompts))
    return tuple(np.concatenate(part) for part in zip(*found, strict=True))


def set_planned(data, planned: np.ndarray):
    """Mark roll-outs of both sides, in order, as the policy's own."""
    done = 0
    for side in data.train_rollouts, data.held_out_rollouts:
        for index, group in enumerate(side):
            done += len(group.psnr)
            side[index] = group._replace(planned=planned[done - len(group.psnr) : done])


@pytest.fixture
def sides(traces, tmp_path):
    """As `module`, with roll-outs on both sides and of two schedules' guidance."""
    data = TraceData(
        *split_by_prompt(two_scales(load_generations([traces])), 0.34, 0),
        settings(traces, tmp_path),
    )
    assert len(data.train_rollouts) > 1
    return ReuseTraining.for_data(
        settings(traces, tmp_path), data, fit_reaction(data.train_rollouts)
    ), data


@pytest.mark.parametrize("count", [0, 7, 30])
def test_a_promise_tells_misses_of_prompts_that_it_was_not_fitted_to(sides, rng, count):
    """Fitted to the policy's own plans if there are enough; each prompt left out in turn."""
    module, data = sides
    damage, psnr, prompts = told(module, data, rng, noise=0.3)
    planned = np.isin(np.arange(len(psnr)), rng.permutation(len(psnr))[:count])
    set_planned(data, planned)
    if count >= 8:
        damage, psnr, prompts = damage[planned], psnr[planned], prompts[planned]
    misses = []
    for prompt in set(prompts):
        others, own = prompts != prompt, prompts == prompt
        line, usual = usual_miss(damage[others], psnr[others])
        misses += ((psnr[own] - line(damage[own])) / usual(damage[own])).tolist()
    promise = quality_promise(module, data)
    assert promise is not None
    assert promise.misses == pytest.approx(sorted(misses), rel=1e-5, abs=1e-6)
    line, usual = usual_miss(damage, psnr)
    places = np.linspace(damage.min(), damage.max(), 9)
    assert promise.offset + promise.slope * places == pytest.approx(line(places))
    assert [promise.usual_miss(x) for x in places] == pytest.approx(usual(places))


def test_videos_without_a_difference_say_nothing_of_a_promise(sides, rng):
    module, data = sides
    told(module, data, rng, noise=0.3)
    group = data.train_rollouts[0]
    whole = quality_promise(module, data)
    data.train_rollouts[0] = group._replace(
        psnr=group.psnr.clone().index_fill(0, torch.tensor([0, 3]), torch.inf)
    )
    fewer = quality_promise(module, data)
    assert len(fewer.misses) == len(whole.misses) - 2
    assert np.isfinite(fewer.misses).all()


def test_nothing_is_promised_where_roll_outs_are_few_or_say_nothing(sides, rng):
    """Of one prompt alone; and where a better prediction means a worse video."""
    module, data = sides
    told(module, data, rng, noise=0.3)
    alone = [np.full(len(group.psnr), "the same") for group in data.train_rollouts]
    held_out = list(data.held_out_rollouts)
    data.held_out_rollouts.clear()
    train = list(data.train_rollouts)
    data.train_rollouts[:] = [
        group._replace(prompts=prompts) for group, prompts in zip(train, alone, strict=True)
    ]
    assert quality_promise(module, data) is None
    data.train_rollouts[:], data.held_out_rollouts[:] = train, held_out
    assert quality_promise(module, data) is not None
    for side in data.train_rollouts, data.held_out_rollouts:
        side[:] = [group._replace(psnr=-group.psnr) for group in side]
    assert quality_promise(module, data) is None
    data.train_rollouts.clear()
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
