import dataclasses

import numpy as np
import pytest
import synthetic_traces
import torch
from matplotlib.image import imread
from synthetic_traces import MODEL, NUM_BLOCKS, NUM_STEPS, write_trace_set

from foresight.config import UserError
from foresight.inspection import (
    change,
    inspect_path,
    lag_errors,
    time_shares,
    variance_shares,
)
from foresight.inspection_policy import neutral_generation, predicted_change, predicted_gain
from foresight.plotting import rows_by_kind
from foresight.policies.learned import LearnedPolicy
from foresight.policies.network import ReuseModel
from foresight.solver import euler_solver
from foresight.traces import TraceSet

TRACE_FIGURES = ["1-blocks", "2-configurations", "3-prompts", "4-forecast", "5-time"]


def gram(vectors):
    return vectors @ vectors.swapaxes(-1, -2)


@pytest.fixture
def policy():
    """A policy that predicts exactly its kernel: residuals (1, sigma), (1, 2 sigma), ..."""
    model = ReuseModel(NUM_BLOCKS, 6, 11, [11])
    grid = np.linspace(1, 0, 11)
    residuals = [np.stack([np.ones(11), pace * grid], axis=1) for pace in (4, 1, 2, 3)]
    grams = np.stack([gram(each) for each in residuals])
    model.fit_kernel(torch.from_numpy(grid), torch.from_numpy(grams))
    model.paths[0].fit(grid, grams[0], euler_solver(grid), guidance_scale=4.0)
    features = torch.tensor([[12.0, 0.0, 4.0, 5.0, 2.0], [13.0, 1.0, 4.0, 5.0, 2.0]])
    model.fit_inputs(torch.eye(6), features)
    costs = {"block_seconds": [0.01] * NUM_BLOCKS, "overhead_seconds": 0.001, "skip_seconds": 0.0}
    return LearnedPolicy(model, MODEL, costs)


def assert_drawn(paths, names, folder):
    assert paths == [folder / f"{name}.png" for name in names]
    assert sorted(path.name for path in folder.iterdir()) == sorted(path.name for path in paths)
    for path in paths:
        pixels = imread(path)
        assert min(pixels.shape[:2]) > 200, path
        assert pixels[..., :3].std() > 0.05, path


def test_change_of_hand_made_residuals():
    vectors = np.array([[1.0, 0.0], [1.0, 1.0], [2.0, 1.0]])
    np.testing.assert_allclose(change(gram(vectors)), [1 / 2, 1 / 5])
    np.testing.assert_allclose(change(gram(np.stack([vectors, 3 * vectors])))[1], [1 / 2, 1 / 5])


def test_change_of_nothing_stays_drawable():
    assert (change(np.ones((4, 4))) > 0).all()


def test_variance_shares_by_hand():
    # log change = 2 * (place) + 1 * (configuration) with both +-1: 4 parts to 1.
    place = np.array([[1.0, -1.0]])
    changes = [np.exp(2 * place + sign) for sign in (1, 1, -1, -1)]
    shares = variance_shares(changes, ["a", "a", "b", "b"], ["p", "q", "p", "q"])
    assert shares == pytest.approx(
        {"step and block": 0.8, "configuration": 0.2, "prompt": 0, "rest": 0}, abs=1e-12
    )
    changes = [np.exp(2 * place + sign) for sign in (1, -1, 1, -1)]
    assert variance_shares(changes, ["a", "a", "b", "b"], ["p", "q", "p", "q"])[
        "prompt"
    ] == pytest.approx(0.2)


def test_variance_shares_sum_to_one_over_step_counts():
    rng = np.random.default_rng(0)
    changes = [np.exp(rng.normal(size=(3, steps))) for steps in (9, 9, 14, 14)]
    shares = variance_shares(changes, ["a", "a", "b", "b"], ["p", "q", "p", "q"])
    assert sum(shares.values()) == pytest.approx(1)
    assert min(shares.values()) > 0


def test_forecast_of_a_line_is_exact_and_reuse_is_not():
    steps = np.arange(7.0)
    vectors = np.stack([np.ones(7), steps], axis=1)[None]
    reuse, forecast = lag_errors(gram(vectors), lag=2)
    np.testing.assert_allclose(reuse[0], 4 / (1 + steps[4:] ** 2))
    np.testing.assert_allclose(forecast, 1e-8)


def test_forecast_equals_least_squares_on_explicit_residuals():
    vectors = np.random.default_rng(1).normal(size=(3, 5, 8))
    _, forecast = lag_errors(gram(vectors), lag=1)
    for column, s in enumerate(range(2, 5)):
        size = np.linalg.norm(vectors[:, s], axis=1)[:, None]
        moved = (vectors[:, s] - vectors[:, s - 1]) / size
        slope = (vectors[:, s - 1] - vectors[:, s - 2]) / size
        beta, *_ = np.linalg.lstsq(slope.reshape(-1, 1), moved.ravel())
        np.testing.assert_allclose(
            forecast[:, column], np.square(moved - beta * slope).sum(axis=1), rtol=1e-9
        )


def test_time_shares():
    rows = [{"text_seconds": 1.0, "denoise_seconds": 6.0, "vae_seconds": 1.0}] * 2
    np.testing.assert_allclose(time_shares(rows), [0.125, 0.75, 0.125])


def test_rows_by_kind_keep_execution_order():
    kinds = ["transformer_blocks", "temporal_transformer_blocks", "transformer_blocks"]
    assert rows_by_kind(kinds) == {"transformer": [0, 2], "temporal transformer": [1]}


def test_trace_set_is_drawn(tmp_path):
    traces = write_trace_set(tmp_path / "set", prompts=4)
    before = sorted(traces.rglob("*"))
    names = [path.name for path in inspect_path(traces, tmp_path / "out")]
    assert names == [f"{name}.png" for name in TRACE_FIGURES]
    assert_drawn(inspect_path(traces, tmp_path / "out"), TRACE_FIGURES, tmp_path / "out")
    assert sorted(traces.rglob("*")) == before


def test_several_configurations_and_one_kind_are_drawn(tmp_path, monkeypatch):
    model = {**MODEL, "block_kinds": ["blocks"] * NUM_BLOCKS}
    settings = {
        "model": model,
        "prompts": [],
        "configs": [],
        "num_generations": 4,
        "sketch_width": 16,
    }
    traces = TraceSet.create(tmp_path / "set", settings)
    for number in range(4):
        monkeypatch.setattr(synthetic_traces, "NUM_STEPS", NUM_STEPS - 2 * (number % 2))
        rng = np.random.default_rng(number)
        traces.add(number, synthetic_traces.trace(number, f"prompt {number // 2}", rng), [])
    paths = inspect_path(traces.folder, traces.folder / "figures")
    assert_drawn(paths, TRACE_FIGURES, traces.folder / "figures")


def test_neutral_generation_is_the_mean_of_training(policy):
    generation = neutral_generation(policy, 5)
    # log2 area 12.5 and log2 aspect 0.5 are 2^6.5 by 2^6.
    expected = {"height": 91, "width": 64, "num_frames": 16, "num_inference_steps": 5}
    assert dataclasses.asdict(generation.config) == {**expected, "guidance_scale": 4.0}
    np.testing.assert_allclose(generation.prompt_embedding, 1 / 6, rtol=1e-6)
    assert generation.sigmas[0] == 1
    assert (np.diff(generation.sigmas) < 0).all()
    np.testing.assert_allclose(
        neutral_generation(policy, 11).sigmas, policy.model.grid.numpy(), atol=1e-6
    )


def test_predicted_change_is_the_kernels(policy):
    generation = neutral_generation(policy, 11)
    changes = predicted_change(policy, generation, lag=2)
    assert changes.shape == (1 + NUM_BLOCKS, 9)
    expected = np.square(0.2 * np.array([4, 1, 2, 3]))[:, None].repeat(9, axis=1)
    np.testing.assert_allclose(changes, expected, rtol=1e-3)


def test_the_gain_is_the_amplitude_that_the_reaction_says(policy):
    """By flow matching, in halves of all directions that react differently."""
    generation, model = neutral_generation(policy, 11), policy.model.reaction
    model.gain[0], model.share[0] = np.log(0.5), np.arctanh(0.6 / 0.98)
    sizes = np.diff(np.append(generation.sigmas, 0))
    halves = 1 + np.outer([0.3 + 0.4, 0.3 - 0.4], sizes)
    expected = [np.prod(halves[:, start:] ** 2, axis=1).mean() ** 0.5 for start in range(11)]
    np.testing.assert_allclose(predicted_gain(policy, generation), expected, rtol=1e-6)


def test_policy_is_drawn(tmp_path, policy):
    policy.save_pretrained(tmp_path / "policy")
    plans = [f"1-plan-{steps}-steps-{speed}x" for steps in (30, 50) for speed in ("1.5", "2", "3")]
    paths = inspect_path(tmp_path / "policy", tmp_path / "out")
    assert_drawn(paths, [*plans, "2-gain", "3-change"], tmp_path / "out")


def test_plans_out_of_reach_are_left_out_with_a_warning(tmp_path, policy, caplog):
    policy.costs["overhead_seconds"] = 0.02
    policy.save_pretrained(tmp_path / "policy")
    names = [path.stem for path in inspect_path(tmp_path / "policy", tmp_path / "out")]
    assert "1-plan-30-steps-2x" in names
    assert "1-plan-30-steps-3x" not in names
    assert "--speedup 3 cannot be reached" in caplog.text


@pytest.mark.parametrize("content", [None, "", "{}", "[]", "3", '{"hidden": 96}'])
def test_neither_traces_nor_policy(tmp_path, content):
    folder = tmp_path / "folder"
    if content is not None:
        folder.mkdir()
        (folder / "config.json").write_text(content)
    with pytest.raises(UserError, match="neither a trace set nor a trained policy"):
        inspect_path(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_damaged_inputs_write_nothing(tmp_path, policy):
    traces = write_trace_set(tmp_path / "set", prompts=2)
    damaged = next((traces / "data").iterdir())
    damaged.write_bytes(damaged.read_bytes()[:100])
    folder = tmp_path / "policy"
    policy.save_pretrained(folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    for path in (traces, folder):
        with pytest.raises(UserError, match="damaged"):
            inspect_path(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_output_that_is_a_file(tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(UserError, match="is a file"):
        inspect_path(write_trace_set(tmp_path / "set", prompts=1), tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"
