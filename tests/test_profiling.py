import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from families.wan import WAN_21
from latte_by_hand import (
    NUM_BLOCKS,
    PROFILED_CONFIG,
    PROFILED_PROMPTS,
    sample,
    sample_by_hand,
    to_temporal,
    watch_blocks,
)

import foresight
from foresight import profiling
from foresight.config import GenerationConfig, UserError
from foresight.fingerprint import fingerprint
from foresight.models.architecture import TEXT_WIDTH, build_pipeline
from foresight.pipeline import generate, load_pipeline
from foresight.plan import COMPUTE, FORECAST, REUSE, Plan, plain_weights
from foresight.policies.fixed import FixedPlan, NonePolicy
from foresight.policies.learned import LearnedPolicy
from foresight.policies.network import ReuseModel
from foresight.profiling import measure_timing, profile
from foresight.recorder import PredictionRecorder, TraceRecorder
from foresight.rollout import KINDS, sample_plan
from foresight.session import MODEL
from foresight.sketch import Sketcher
from foresight.solver import Solver, euler_solver, solver_of
from foresight.traces import TraceSet

SKETCH_WIDTH = 4093


def exact_grams(residuals: torch.Tensor) -> np.ndarray:
    """(..., S, d) to (..., S, S)."""
    return (residuals.double() @ residuals.double().mT).numpy()


def assert_within_sketch_error(found: np.ndarray, exact: np.ndarray) -> None:
    """Inner products, and the distances between steps that policies live on: 5 deviations."""
    deviation = (2 / SKETCH_WIDTH) ** 0.5
    norms = np.sqrt(np.diagonal(exact, axis1=-2, axis2=-1))
    scale = norms[..., :, None] * norms[..., None, :]
    assert (np.abs(found - exact) < 5 * deviation * scale).all()

    def distances(gram):
        own = np.diagonal(gram, axis1=-2, axis2=-1)
        return own[..., :, None] + own[..., None, :] - 2 * gram

    off = ~np.eye(exact.shape[-1], dtype=bool)
    ratio = distances(found)[..., off] / distances(exact)[..., off]
    assert np.abs(ratio - 1).max() < 5 * deviation


@pytest.mark.parametrize("size", [(32, 32), (32, 48), (64, 64)], ids=str)
def test_grams_are_those_of_the_exact_residuals(pipe, size):
    """4, 6 and 16 tokens for 16 frames: at the last, the two layouts have one shape.

    A sketch wider than the residual is exact, and tells whether layouts were told apart.
    """
    steps = 4
    recorder = TraceRecorder(NUM_BLOCKS, Sketcher(SKETCH_WIDTH), guidance_scale=4.0)
    wide = TraceRecorder(NUM_BLOCKS, Sketcher(2 * size[0] * size[1] * 16), guidance_scale=4.0)

    def tap(*seen):
        recorder(*seen)
        wide(*seen)

    predictions = []
    with watch_blocks(pipe) as calls, foresight.reuse(pipe, "none", tap=tap):
        handle = pipe.transformer.register_forward_hook(
            lambda _, args, output: predictions.append(output[0][:, :4].clone())
        )
        sample(pipe, size=size, steps=steps)
        handle.remove()
    residuals = torch.zeros(NUM_BLOCKS, steps, calls[0].output.numel())
    norms = np.zeros((NUM_BLOCKS, steps))
    for call in calls:
        spatial = to_temporal(call.residual, batch=2) if call.block % 2 else call.residual
        residuals[call.block, call.step] = spatial.flatten()
        norms[call.block, call.step] = call.output.double().square().sum()
    energy = norms.mean(axis=1)
    exact = exact_grams(residuals) / energy[:, None, None]
    exact_stack = exact_grams(residuals.sum(dim=0)) / energy[-1]

    gram, group_gram, output_norm = recorder.grams()
    assert output_norm == pytest.approx(np.sqrt(norms), rel=1e-4)
    assert group_gram.shape == (2, steps, steps)
    assert_within_sketch_error(gram, exact)
    assert_within_sketch_error(group_gram[0], exact_stack)
    gram, group_gram, _ = wide.grams()
    assert gram == pytest.approx(exact, rel=1e-4)
    assert group_gram[0] == pytest.approx(exact_stack, rel=1e-4)
    guided = torch.stack([u + 4 * (c - u) for u, c in predictions]).flatten(1)
    exact_output = exact_grams(guided)
    assert group_gram[1] == pytest.approx(exact_output / np.diag(exact_output).mean(), rel=1e-4)


def test_branches_that_run_one_after_the_other_are_added():
    """Vectors shorter than the sketch keep their inner products exactly.

    Residuals of both count; of the predictions, what guidance makes of them (prompt first).
    """
    rng = torch.Generator().manual_seed(0)
    streams, outputs = torch.randn(2, 3, 2, 2, 1, 5, 6, generator=rng)  # step, branch, block
    recorder = TraceRecorder(2, Sketcher(64), guidance_scale=3.0)
    for step, branch, block in np.ndindex(3, 2, 2):
        place = step, branch, block
        recorder(step, branch, block, (streams[place],), (outputs[place],))
    for step, branch in np.ndindex(3, 2):
        recorder(step, branch, MODEL, (streams[step, branch, 0],), (outputs[step, branch, 1],))
    gram, group_gram, output_norm = recorder.grams()
    residuals = (outputs - streams).flatten(3)
    energy = outputs.square().flatten(3).sum(dim=(1, 3)).numpy()  # step, block
    by_block = residuals.permute(2, 0, 1, 3).flatten(2)
    scale = energy.mean(axis=0)
    assert gram == pytest.approx(exact_grams(by_block) / scale[:, None, None], rel=1e-4, abs=1e-6)
    stack = residuals.sum(dim=2).flatten(1)
    assert group_gram[0] == pytest.approx(exact_grams(stack) / scale[-1], rel=1e-4, abs=1e-6)
    assert output_norm == pytest.approx(np.sqrt(energy.T), rel=1e-5)
    with_prompt, without = outputs[:, 0, 1], outputs[:, 1, 1]
    seen = exact_grams((without + 3 * (with_prompt - without)).flatten(1))
    assert group_gram[1] == pytest.approx(seen / np.diag(seen).mean(), rel=1e-4, abs=1e-6)


def test_timing_adds_up_to_the_time_of_a_step(pipe):
    timing = measure_timing(pipe, "a red circle", PROFILED_CONFIG)
    assert timing.block_seconds.shape == (NUM_BLOCKS,)
    assert (timing.block_seconds > 0).all()
    assert timing.overhead_seconds > 0
    step = timing.block_seconds.sum() + timing.overhead_seconds
    assert step == pytest.approx(timing.denoise_seconds / PROFILED_CONFIG.num_inference_steps)


@pytest.mark.parametrize("steps", [6, 12])
def test_block_times_are_those_of_all_branches(monkeypatch, steps):
    """Wan runs its CFG branches apart: a block that takes time does so twice a step.

    However many steps there are; eight are timed at most. No time passes but in blocks, so that
    what is around them gets the least that it is granted, a fiftieth.
    """
    pipe, took, now, tapped = WAN_21.build(), 0.01, 0.0, set()
    generate = profiling.generate

    def noted(pipe, prompt, config, *, tap=None, **others):
        def noting(step, *seen):
            tapped.add(step)
            tap(step, *seen)

        return generate(pipe, prompt, config, tap=tap and noting, **others)

    monkeypatch.setattr(profiling, "generate", noted)
    pipe.set_progress_bar_config(disable=True)
    for block in pipe.transformer.blocks:

        def slow(*args, forward=block.forward, **kwargs):
            nonlocal now
            now += took
            return forward(*args, **kwargs)

        monkeypatch.setattr(block, "forward", slow)
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    timing = measure_timing(pipe, "a red circle", GenerationConfig(32, 32, 5, steps, 4.0))
    assert tapped == set(range(min(steps, 8)))
    step_seconds = 2 * took * len(pipe.transformer.blocks)
    assert timing.block_seconds == pytest.approx(0.98 * 2 * took)
    assert timing.overhead_seconds == pytest.approx(0.02 * step_seconds)
    full = steps * (timing.block_seconds.sum() + timing.overhead_seconds)
    assert timing.denoise_seconds == pytest.approx(full)


def test_a_trace_holds_what_the_contract_says(profiled, pipe):
    found = TraceSet.open(profiled)
    steps = PROFILED_CONFIG.num_inference_steps
    assert [trace["prompt"] for trace in found.traces] == [p.text for p in PROFILED_PROMPTS]
    assert [trace["category"] for trace in found.traces] == ["slow", "", "fast"]
    for number, trace in enumerate(found.traces):
        assert trace["seed"] == number
        assert trace["gram"].shape == (NUM_BLOCKS, steps, steps)
        assert trace["group_gram"].shape == (2, steps, steps)
        assert trace["group_names"] == ["stack", "output"]
        assert trace["output_norm"].shape == (NUM_BLOCKS, steps)
        assert trace["block_seconds"].shape == (NUM_BLOCKS,)
        assert trace["profile_seconds"] > 0
        assert trace["prompt_embedding"].shape == (128,)
        assert (np.diff(trace["timesteps"]) < 0).all()
        assert ((trace["sigmas"] > 0) & (trace["sigmas"] < 1)).all()
        assert trace["scheduler"] == "DDIMScheduler"
        for name, value in dataclasses.asdict(PROFILED_CONFIG).items():
            assert trace[name] == value
        model = json.loads(trace["model"])
        assert model == found.settings["model"]
        assert len(model["block_names"]) == NUM_BLOCKS
    assert len({trace["generation_id"] for trace in found.traces}) == len(PROFILED_PROMPTS)


def test_roll_outs_hold_the_error_of_their_plan(profiled, pipe):
    found = TraceSet.open(profiled)
    rows = [row for row in found.rollouts if row["prompt"] == PROFILED_PROMPTS[0].text]
    assert [row["kind"] for row in rows] == list(KINDS)
    truth = sample(pipe, steps=5)
    for row in rows:
        assert row["at_output"]
        plan = Plan(
            row["plan"].astype(np.uint8),
            row["coefficients"].astype(np.float32),
            True,
            row["weights"].astype(np.float32),
        )
        by_hand = sample_by_hand(pipe, plan)
        expected = float((by_hand - truth).square().mean() / truth.square().mean())
        assert row["final_error"] == pytest.approx(expected, rel=1e-2, abs=1e-9)
        assert row["compute_fraction"] == pytest.approx((plan.actions == COMPUTE).mean())
        assert row["generation_id"] == found.traces[0]["generation_id"]
        assert row["reaction"].shape == (5, 3)
        off = np.cumsum(plan.actions[:, 0] != COMPUTE) > 0
        assert (row["reaction"][:, 0] > 0).tolist() == (off & (plan.actions[:, 0] == 0)).tolist()
    assert max(row["final_error"] for row in rows) > 1e-6
    with torch.no_grad():
        videos = [
            np.round(
                pipe.video_processor.postprocess_video(pipe.decode_latents(x, 16), "np")[0] * 255
            )
            for x in (truth, by_hand)
        ]
    mse = np.square(videos[0] - videos[1]).mean()
    assert row["psnr"] == pytest.approx(10 * np.log10(255**2 / mse), abs=0.2)


@torch.no_grad()
def decode(pipe, latents: torch.Tensor) -> np.ndarray:
    video = pipe.decode_latents(latents, 16)
    return np.round(pipe.video_processor.postprocess_video(video, "np")[0] * 255)


def test_kinds_of_roll_outs_go_in_turn_over_all_generations(pipe, tmp_path):
    found = profile(pipe, PROFILED_PROMPTS[:2], [PROFILED_CONFIG], tmp_path, rollouts=1)
    assert [row["kind"] for row in found.rollouts] == list(KINDS[:2])


def pipe_solver(pipe, steps: int) -> Solver:
    scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
    scheduler.set_timesteps(steps)
    solver = solver_of(scheduler)
    assert solver is not None
    return solver


def test_a_trace_holds_its_solver(profiled, pipe):
    solver = pipe_solver(pipe, PROFILED_CONFIG.num_inference_steps)
    for trace in TraceSet.open(profiled).traces:
        assert trace["response"] == pytest.approx(solver.response, rel=1e-6)
        assert trace["decay"] == pytest.approx(solver.decay, rel=1e-6)


# How the model answers latents that are off.

REACTION_PLAN = ~np.isin(np.arange(7), (2, 5))
OFF_AT = [3, 4, 6]  # computed, and after something was skipped


def reaction_plan(num_blocks: int) -> Plan:
    weights = plain_weights(7)
    weights[2], weights[4] = (1.5, -0.5, 0), (1.1, 0, -0.1)
    return Plan.of_output(REACTION_PLAN, weights, num_blocks)


def watched_run(pipe, config, policy, recorder) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Latents given and outputs of the model's own forward, below what a policy does with it."""
    calls, own = [], pipe.transformer.forward

    def watched(*args, **kwargs):
        output = own(*args, **kwargs)
        latents = kwargs["hidden_states"]
        if type(latents) is torch.Tensor:  # not while the order of blocks is found, without data
            calls.append((latents.double().clone(), output[0].double().clone()))
        return output

    pipe.transformer.forward = watched
    try:
        generate(pipe, PROFILED_PROMPTS[0].text, config, seed=0, policy=policy, tap=recorder)
    finally:
        pipe.transformer.forward = own
    return calls


def assert_measured(pipe, config: GenerationConfig, num_blocks: int, read) -> None:
    """The reaction of a plan is that of full tensors; `read` has latents and both predictions."""
    sketcher = Sketcher(4099)  # wider than the latents, and so exact
    recorders = [PredictionRecorder(sketcher, config.guidance_scale) for _ in range(2)]
    policies = [NonePolicy(), FixedPlan(reaction_plan(num_blocks))]
    rows = []
    for policy, recorder in zip(policies, recorders, strict=True):
        given, predicted = [], []
        for latents, without, with_prompt in read(watched_run(pipe, config, policy, recorder)):
            given.append(latents.flatten())
            guided = without + config.guidance_scale * (with_prompt - without)
            predicted.append(guided.flatten())
        rows.append((torch.stack(given), torch.stack(predicted)))
    (given, predicted), (given_off, predicted_off) = rows
    assert given.shape[1] < sketcher.width
    assert (len(given), len(given_off)) == (7, 5)
    scale, expected = predicted.square().sum(dim=1).mean(), torch.zeros(7, 3)
    for place, step in enumerate(np.flatnonzero(REACTION_PLAN)):
        e, a = given_off[place] - given[step], predicted_off[place] - predicted[step]
        expected[step] = torch.stack([e @ e, e @ a, a @ a]) / scale
    found = recorders[1].reaction(recorders[0], 7)
    assert found == pytest.approx(expected.numpy(), rel=2e-3, abs=1e-9)
    assert np.flatnonzero(found.any(axis=1)).tolist() == OFF_AT
    assert np.flatnonzero(found[:, 0] > 1e-6).tolist() == OFF_AT


def test_the_reaction_of_a_plan_is_that_of_full_tensors(pipe):
    """Both branches in one batch, without the prompt first; a variance behind the prediction."""

    def read(calls):
        return ((x[0], *output[:, : x.shape[1]]) for x, output in calls)

    assert_measured(pipe, GenerationConfig(32, 32, 16, 7, 4.0), NUM_BLOCKS, read)


def test_the_reaction_of_branches_that_run_apart_is_that_of_full_tensors():
    """Wan: with the prompt first."""
    pipe = WAN_21.build()
    pipe.set_progress_bar_config(disable=True)

    def read(calls):
        pairs = zip(calls[::2], calls[1::2], strict=True)
        return ((x[0], without[0], given[0]) for (x, given), (_, without) in pairs)

    blocks = len(pipe.transformer.blocks)
    assert_measured(pipe, GenerationConfig(32, 32, 5, 7, 4.0), blocks, read)


def made_up_recorder(latents, outputs, guidance_scale: float = 1.0) -> PredictionRecorder:
    """One that was shown latents and outputs (S, branches, B, C, ...) of a model."""
    recorder = PredictionRecorder(Sketcher(4096), guidance_scale)
    for step, branches in enumerate(zip(latents, outputs, strict=True)):
        for branch, (seen, predicted) in enumerate(zip(*branches, strict=True)):
            shown = predicted if type(predicted) is tuple else (predicted,)
            recorder(step, branch, MODEL, (seen,), shown)
    return recorder


def as_it_is(latents, outputs):
    return latents, outputs


def variance_behind(latents, outputs):
    return latents, torch.cat([outputs, torch.randn(outputs.shape)], dim=3)


def extra_channels(latents, outputs):
    return torch.cat([latents, latents], dim=3), outputs


def other_sizes(latents, outputs):
    return latents[..., :2], outputs


def video_and_sound(latents, outputs):
    return latents, [[(each, each[:, :1]) for each in step] for step in outputs]


def three_branches(latents, outputs):
    return latents.repeat(1, 3, 1, 1, 1, 1, 1), outputs.repeat(1, 3, 1, 1, 1, 1, 1)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (as_it_is, True),
        (variance_behind, True),
        (extra_channels, False),
        (other_sizes, False),
        (video_and_sound, False),
        (three_branches, False),
    ],
)
def test_the_reaction_is_measured_where_latents_and_predictions_have_one_form(change, told):
    torch.manual_seed(0)
    runs = torch.randn(2, 2, 4, 1, 1, 4, 2, 3, 3)  # which run, which tensor, step, branch, ...
    plain, other = (made_up_recorder(*change(*run)) for run in runs)
    (x, v), (y, w) = runs.double().flatten(3)
    answers = torch.stack([(y - x).square(), (y - x) * (w - v), (w - v).square()], dim=-1)
    expected = answers.sum(dim=1) / v.square().sum(dim=1).mean()
    assert other.reaction(plain, 4) == pytest.approx(told * expected.numpy(), rel=1e-4, abs=1e-5)


def made_up_trace(rng) -> dict:
    vectors = rng.normal(size=(20, 50)).cumsum(axis=0)
    return {
        "sigmas": np.linspace(0.99, 0.05, 20),
        "group_gram": np.repeat((vectors @ vectors.T)[None], 2, axis=0),
    }


@pytest.mark.parametrize("known", [True, False])
def test_sampled_plans_cover_reuse_forecast_and_correction(rng, known):
    trace = made_up_trace(rng)
    solver = euler_solver(trace["sigmas"])
    if known:
        solver = Solver(solver.response, np.ones(20))
    seen = set()
    for _ in range(30):
        for kind in ("planned", "stack", "single"):
            plan = sample_plan(kind, rng, trace, NUM_BLOCKS, solver)
            assert plan.shape == (20, NUM_BLOCKS)
            assert (plan.actions[0] == COMPUTE).all()
            assert plan.at_output
            assert (plan.actions == plan.actions[:, :1]).all()
            actions = plan.actions[:, 0]
            runs = np.diff((actions != COMPUTE).astype(int), prepend=0) == 1
            if kind == "single":
                assert runs.sum() == 1
            weighted = (plan.weights != plain_weights(1)).any(axis=1)
            assert not weighted[: np.flatnonzero(actions != COMPUTE).min(initial=20)].any()
            seen |= set(actions.tolist())
            seen |= {"corrected" for _ in np.flatnonzero(weighted & (actions == COMPUTE))}
    assert seen == {COMPUTE, REUSE, FORECAST} | ({"corrected"} if known else set())


# Stopping, going on, and refusing.

DIE_WHILE_WRITING = """
import os, signal, sys
import pyarrow.parquet as pq

write, written = pq.write_table, 0

def write_half(table, path, **options):
    global written
    written += 1
    write(table, path, **options)
    if written == 4:  # the trace of the second generation, after its roll-outs
        os.truncate(path, os.path.getsize(path) // 2)
        os.kill(os.getpid(), signal.SIGKILL)

pq.write_table = write_half
from foresight.cli import main
main(sys.argv[1:])
"""


def comparable(rows: list[dict]) -> list[dict]:
    return [
        {
            key: value.tolist() if isinstance(value, np.ndarray) else value
            for key, value in row.items()
            if not key.endswith("_seconds")
        }
        for row in rows
    ]


def files_below(folder: Path) -> dict[str, tuple[bytes, int]]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in files
    }


def test_a_killed_profile_goes_on_as_if_uninterrupted(profiled, model_folder, tmp_path):
    prompts = "# slow\n{}\n#\n{}\n# fast\n{}\n".format(
        *(prompt.text for prompt in PROFILED_PROMPTS)
    )
    (tmp_path / "prompts.txt").write_text(prompts, "utf-8")
    configs = json.dumps([dataclasses.asdict(PROFILED_CONFIG)])
    (tmp_path / "configs.json").write_text(configs, "utf-8")
    folder = tmp_path / "traces"
    arguments = ["profile", "--model", model_folder, "--device", "cpu", "--output", folder]
    arguments += ["--prompts", tmp_path / "prompts.txt", "--configs", tmp_path / "configs.json"]
    killed = subprocess.run(
        [sys.executable, "-c", DIE_WHILE_WRITING, *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
        capture_output=True,
        text=True,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    left = files_below(folder)
    assert len(TraceSet.open(folder).traces) == 1

    whole = TraceSet.open(profiled)
    resumed = profile(
        load_pipeline(model_folder, device="cpu"), PROFILED_PROMPTS, [PROFILED_CONFIG], folder
    )
    assert comparable(resumed.traces) == comparable(whole.traces)
    assert comparable(resumed.rollouts) == comparable(whole.rollouts)
    files = files_below(folder)
    assert set(files) == set(files_below(profiled))
    first = [name for name in left if "00000" in name]
    assert len(first) == 2
    assert all(files[name] == left[name] for name in first)


def test_a_complete_trace_set_is_left_as_it_is(profiled, model_folder, monkeypatch):
    def fail(*_, **__):
        raise AssertionError("nothing is left to generate")

    monkeypatch.setattr(profiling, "generate", fail)
    before = files_below(profiled)
    profile(
        load_pipeline(model_folder, device="cpu"), PROFILED_PROMPTS, [PROFILED_CONFIG], profiled
    )
    assert files_below(profiled) == before


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"seed": 1}, "seed"),
        ({"rollouts": 2}, "rollouts"),
        ({"sketch_width": 1021}, "sketch_width"),
        ({"prompts": PROFILED_PROMPTS[:2]}, "prompts, num_generations"),
        ({"configs": [dataclasses.replace(PROFILED_CONFIG, guidance_scale=2.0)]}, "configs"),
    ],
)
def test_other_settings_are_refused_and_change_nothing(profiled, model_folder, changes, named):
    before = files_below(profiled)
    settings = {"prompts": PROFILED_PROMPTS, "configs": [PROFILED_CONFIG], **changes}
    with pytest.raises(UserError, match=rf"other settings \({named} differ\)") as refusal:
        profile(load_pipeline(model_folder, device="cpu"), output=profiled, **settings)
    assert "\n" not in str(refusal.value)
    assert files_below(profiled) == before


def test_another_model_is_refused_and_changes_nothing(profiled, other_pipe):
    before = files_below(profiled)
    with pytest.raises(UserError, match=r"other settings \(model differ\)"):
        profile(other_pipe, PROFILED_PROMPTS, [PROFILED_CONFIG], profiled)
    assert files_below(profiled) == before


def test_an_on_policy_round_rolls_the_policys_own_plans_out(pipe, tmp_path):
    torch.manual_seed(0)
    network = ReuseModel(NUM_BLOCKS, TEXT_WIDTH, num_levels=8, profiled_steps=[8])
    grid = np.linspace(1, 0, 8)
    network.paths[0].fit(grid, np.eye(8), euler_solver(grid), guidance_scale=4.0)
    costs = {"block_seconds": [1.0], "overhead_seconds": 0.0, "skip_seconds": 0.0}
    policy = LearnedPolicy(network, fingerprint(pipe), costs)
    few = PROFILED_PROMPTS[:1], [PROFILED_CONFIG], tmp_path
    traces = profile(pipe, *few, rollouts=6, policy=policy)
    seen: set[bytes] = set()
    for row in traces.rollouts:
        assert row["kind"] == "policy"
        computed = np.asarray(row["plan"])[:, 0] == COMPUTE
        speedup = PROFILED_CONFIG.num_inference_steps / computed.sum()
        again = policy.at(speedup)
        made = generate(pipe, PROFILED_PROMPTS[0].text, PROFILED_CONFIG, seed=0, policy=again)
        plan = made.report.plan
        assert plan is not None
        assert (plan.actions == row["plan"]).all()
        assert (plan.weights == row["weights"]).all()
        seen.add(plan.actions.tobytes())
    assert len(seen) > 1
    torch.nn.init.normal_(network.entity.weight)
    with pytest.raises(UserError, match="policy"):
        profile(pipe, *few, rollouts=6, policy=policy)


@pytest.mark.filterwarnings("ignore:invalid value encountered in cast")
def test_a_model_that_predicts_nan_is_named_and_nothing_is_written(tmp_path):
    pipe = build_pipeline()
    with torch.no_grad():
        pipe.transformer.proj_out.bias.fill_(float("nan"))
    with pytest.raises(UserError, match=f"NaN.*{PROFILED_PROMPTS[0].text}"):
        profile(pipe, PROFILED_PROMPTS[:1], [PROFILED_CONFIG], tmp_path / "traces")
    assert not (tmp_path / "traces").exists()
