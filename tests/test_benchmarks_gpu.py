"""The GPU benchmark on tiny models, on a CPU: what it writes, against what is counted by hand."""

import dataclasses
import json
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.profiler import ProfilerActivity

from benchmarks import gpu, gpu_measure, gpu_methods, gpu_syncs
from benchmarks.gpu_budget import Budget
from benchmarks.gpu_compile import measure_compiled
from benchmarks.gpu_configs import MODELS
from benchmarks.gpu_models import build_pipeline, built_as, call_arguments
from benchmarks.gpu_runs import Bench, attention, ideal_speedup
from foresight.blocks import find_blocks
from foresight.config import GenerationConfig

STEPS = 4
CPU, DTYPE = torch.device("cpu"), torch.bfloat16
ALL_METHODS = {
    *("uncached", "none", "plan 1.5x", "plan 2x", "plan 3x", "foresight", "profiler"),
    *("pab", "fbcache", "magcache", "taylorseer", "cache-dit"),
}
# As docs/peers.md has it.
ABSENT = {
    "latte-1": {"fbcache", "magcache", "cache-dit"},
    "open-sora-1.2": {"pab", "fbcache", "magcache", "taylorseer", "cache-dit"},
    "cogvideox-2b": set(),
    "wan2.1-1.3b": {"pab"},
    "hunyuanvideo": set(),
}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """The results of one call for all models, and the folder that they are in."""
    pytest.importorskip("cache_dit")
    folder = tmp_path_factory.mktemp("gpu")
    assert gpu.main([*command(folder), "--rounds", "1"]) == 0
    return folder, {name: json.loads(path(folder, name).read_text("utf-8")) for name in MODELS}


def command(folder):
    return ["--device", "cpu", "--size", "tiny", "--steps", str(STEPS), "--output", str(folder)]


def path(folder, name):
    return folder / f"gpu-{name}.json"


def tiny_bench(name, steps=STEPS):
    model = MODELS[name]
    size = model.tiny.sizes[0]
    call = call_arguments(model, model.tiny, size, CPU, DTYPE)
    pipe = build_pipeline(model, model.tiny, CPU, DTYPE)
    return Bench(pipe, call, GenerationConfig(*size, steps, model.guidance))


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("latte-1", 1_057_246_880),
        ("open-sora-1.2", 1_207_643_972),
        ("cogvideox-2b", 1_693_783_872),
        ("wan2.1-1.3b", 1_418_996_800),
        ("hunyuanvideo", 12_821_012_544),
    ],
)
def test_full_models_are_as_large_as_the_released_ones(name, parameters):
    with torch.device("meta"):
        transformer = MODELS[name].transformer(**MODELS[name].full.transformer)
    assert sum(p.numel() for p in transformer.parameters()) == parameters


@pytest.mark.parametrize(
    ("encoder", "billions"),
    [
        (MODELS[n].full.encoders[0], b)
        for n, b in (("latte-1", 4.76), ("wan2.1-1.3b", 5.68), ("hunyuanvideo", 7.51))
    ],
)
def test_full_text_encoders_are_as_large_as_the_released_ones(encoder, billions):
    with built_as(torch.device("meta"), DTYPE):
        module = encoder.build()
    assert sum(p.numel() for p in module.parameters()) / 1e9 == pytest.approx(billions, abs=0.01)


@pytest.mark.parametrize("name", MODELS)
def test_models_are_built_in_bf16_but_for_what_diffusers_keeps(name):
    pipe = tiny_bench(name).pipe
    kept = {n for n, p in pipe.transformer.named_parameters() if p.dtype != DTYPE}
    assert {part.dtype for part in pipe.vae.parameters()} == {DTYPE}
    assert all("time_embedder" in n or "scale_shift" in n or "norm" in n for n in kept)
    assert bool(kept) == (name == "wan2.1-1.3b")


@pytest.mark.parametrize("name", MODELS)
def test_every_model_gets_every_measurement(results, name):
    result = results[1][name]
    assert result["parts"].keys() == {"text_encoder", "dit", "vae"}
    assert sum(part["share"] for part in result["parts"].values()) == pytest.approx(1)
    released = result["step_seconds"] * MODELS[name].steps
    assert result["parts"]["dit"]["seconds"] == pytest.approx(released)
    assert set(result["left_out"]) == ABSENT[name]
    assert set(result["methods"]) == ALL_METHODS - ABSENT[name]
    assert result["planning"]["planned_steps"] == 25
    assert all(row["latents_finite"] for row in result["methods"].values())
    facts = [result[key] for key in ("scale", "device_type", "torch", "steps", "dtype")]
    assert facts == ["tiny", "cpu", torch.__version__, STEPS, "bfloat16"]
    assert result["attention"]["chosen"] in result["attention"]["step_seconds"]


@pytest.mark.parametrize("name", MODELS)
def test_without_a_gpu_there_are_no_waits_and_no_peaks(results, name):
    for row in results[1][name]["methods"].values():
        assert row["syncs"] is None
        assert row["peak_bytes"] is None


@pytest.mark.parametrize("name", MODELS)
def test_blocks_are_counted_by_kind(results, name):
    result, tiny = results[1][name], MODELS[name].tiny.transformer
    expected = {
        "latte-1": {"transformer_blocks": 2, "temporal_transformer_blocks": 2},
        "open-sora-1.2": {"spatial_blocks": 2, "temporal_blocks": 2},
        "cogvideox-2b": {"transformer_blocks": tiny.get("num_layers")},
        "wan2.1-1.3b": {"blocks": tiny.get("num_layers")},
        "hunyuanvideo": {"transformer_blocks": 2, "single_transformer_blocks": 2},
    }
    assert {kind["kind"]: kind["count"] for kind in result["blocks"]} == expected[name]
    stack = sum(kind["count"] * kind["seconds_per_step"] for kind in result["blocks"])
    assert 0 < stack < 3 * result["step_seconds"]  # three: timers of a busy machine


@pytest.mark.parametrize("name", MODELS)
def test_compiled_blocks_stay_whole_under_the_runtime(results, name):
    compiled = results[1][name]["compile"]
    assert compiled["graphs"] >= 1
    assert compiled["recompiles"] == compiled["graph_breaks"] == 0


@pytest.mark.parametrize(
    ("name", "depth", "most_graphs"),
    [
        ("latte-1", ["num_layers"], 3),  # two kinds, and a first block with positions before it
        ("open-sora-1.2", ["depth"], 2),
        ("cogvideox-2b", ["num_layers"], 2),
        ("wan2.1-1.3b", ["num_layers"], 1),
        ("hunyuanvideo", ["num_layers", "num_single_layers"], 3),
    ],
)
def test_stacks_deeper_than_the_compilers_limit_share_their_graphs(name, depth, most_graphs):
    """As full models are: were graphs made for each block, compilation would give up."""
    layers = torch._dynamo.config.recompile_limit + 2
    model = MODELS[name]
    deep = model.tiny.transformer | dict.fromkeys(depth, layers)
    scale = dataclasses.replace(model.tiny, transformer=deep)
    size = scale.sizes[0]
    pipe = build_pipeline(model, scale, CPU, DTYPE)
    call = call_arguments(model, scale, size, CPU, DTYPE)
    bench = Bench(pipe, call, GenerationConfig(*size, STEPS, model.guidance))
    found = measure_compiled(
        bench,
        gpu_methods.whole_stack_plan(STEPS, 2.0, len(find_blocks(pipe.transformer))),
        rounds=1,
        rng=np.random.default_rng(0),
        budget=Budget(1e6),
        say=lambda _: None,
    )
    assert found["blocks"] >= layers
    assert found["graphs"] <= most_graphs
    assert found["recompiles"] == found["graph_breaks"] == 0


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("method", "computed"), [("plan 1.5x", 3), ("plan 3x", 1), ("none", 4)])
def test_methods_run_the_blocks_that_they_plan(results, name, method, computed):
    """Counted at the first module inside the first block, which only a computed block calls."""
    bench = tiny_bench(name)
    block = find_blocks(bench.pipe.transformer)[0].module
    calls = []
    handle = next(block.children()).register_forward_pre_hook(lambda *_: calls.append(1))
    bench.run()
    uncached = len(calls)
    found, _ = gpu_methods.methods(bench, len(find_blocks(bench.pipe.transformer)))
    found[method].run(bench)  # watches the model once, without data
    calls.clear()
    found[method].run(bench)
    handle.remove()
    assert len(calls) / uncached == computed / STEPS
    assert results[1][name]["methods"][method]["compute_fraction"] == computed / STEPS


@pytest.mark.parametrize("name", MODELS)
def test_plans_keep_no_more_predictions_than_they_read(results, name):
    """Nor a variance; of three that the last step reads, one is its own."""
    bench = tiny_bench(name)
    sizes, channels = [], bench.pipe.transformer.config.in_channels  # of the latents
    handle = bench.pipe.transformer.register_forward_hook(
        lambda _, __, out: sizes.append(getattr(out, "sample", out[0])[:, :channels].nbytes)
    )
    bench.run(steps=2)
    handle.remove()
    branches = 2 if name == "wan2.1-1.3b" else 1
    held = results[1][name]["methods"]["plan 1.5x"]["cache_bytes"]
    assert held == 2 * branches * sizes[0]


def test_ideal_speedup_is_the_closed_form():
    stack, around, steps, count = 0.7, 0.3, 10, 4
    shares = np.zeros((steps, 7))
    shares[:count] = 1
    found = ideal_speedup(stack + around, np.full(7, stack / 7), shares)
    assert found == pytest.approx(steps * (stack + around) / (count * stack + steps * around))


def test_speedups_are_medians_of_ratios_within_rounds():
    """Of runs whose times are given: the machine slows down from round to round."""
    seconds = {"uncached": [1.0, 2.0, 4.0], "none": [0.5, 0.5, 4.0]}
    left = {name: iter(values) for name, values in seconds.items()}
    order = []

    def runs(name):
        def run():
            order.append(name)
            return SimpleNamespace(seconds=next(left[name]))

        return run

    done = gpu_methods.timed_rounds(
        {name: runs(name) for name in seconds},
        rounds=3,
        rng=np.random.default_rng(1),
        budget=Budget(1e6),
        say=lambda _: None,
    )
    assert {name: [run.seconds for run in made] for name, made in done.items()} == seconds
    assert [set(order[i : i + 2]) for i in (0, 2, 4)] == [set(seconds)] * 3
    assert gpu_methods.median_speedup(done["uncached"], done["none"]) == 2.0


def test_a_spent_budget_ends_the_rounds_after_one():
    made = gpu_methods.timed_rounds(
        {"uncached": lambda: SimpleNamespace(seconds=1.0)},
        rounds=5,
        rng=np.random.default_rng(0),
        budget=Budget(0.0),
        say=lambda _: None,
    )
    assert len(made["uncached"]) == 1


def test_a_method_that_fails_in_a_round_does_not_cost_the_others():
    def run_out():
        raise torch.OutOfMemoryError

    budget = Budget(60.0)
    done = gpu_methods.timed_rounds(
        {"uncached": lambda: SimpleNamespace(seconds=1.0), "large": run_out},
        rounds=2,
        rng=np.random.default_rng(0),
        budget=budget,
        say=lambda _: None,
    )
    assert list(done) == ["uncached"]
    assert len(done["uncached"]) == 2
    assert budget.left_out == {"large": "out of memory"}


def test_what_fails_or_finds_no_time_is_named():
    budget = Budget(60.0)

    def run_out():
        raise torch.OutOfMemoryError("tried to allocate")

    assert budget.attempt("large", run_out) is None
    assert budget.attempt("long", lambda: 1, needs=120.0) is None
    assert budget.attempt("short", lambda: 1, needs=30.0) == 1
    assert budget.left_out == {"large": "out of memory", "long": "no time was left"}


SIZES = ((32, 32, 4), (16, 32, 4), (16, 16, 4))


@pytest.mark.parametrize(
    ("memory", "seconds", "taken", "refused"),
    [
        (10**9, 1e6, SIZES[0], {}),
        (16 * 32, 1e6, SIZES[1], {"32x32x4": "out of memory"}),
        (10**9, 1e-6, SIZES[2], {"32x32x4": "too long", "16x32x4": "too long"}),
    ],
)
def test_the_largest_size_that_fits_is_taken(monkeypatch, memory, seconds, taken, refused):
    plain = Bench.run

    def run(self, *args, **kwargs):
        if self.config.height * self.config.width > memory:
            raise torch.OutOfMemoryError("out of memory")
        return plain(self, *args, **kwargs)

    monkeypatch.setattr(Bench, "run", run)
    model = MODELS["latte-1"]
    scale = dataclasses.replace(model.tiny, sizes=SIZES)
    pipe = build_pipeline(model, scale, CPU, DTYPE)
    budget = Budget(seconds)
    bench, found = gpu_measure.fit(model, scale, pipe, STEPS, budget, lambda _: None)
    config = bench.config
    assert (config.height, config.width, config.num_frames) == taken
    assert found.keys() == refused.keys()
    assert all(refused[size] in reason for size, reason in found.items())


def test_waits_are_sorted_by_step():
    """Two steps of two forward passes; what comes before the loop does not count."""

    events = [
        *((gpu_syncs.MARK, start) for start in (10, 20, 30, 40)),
        *(("cudaStreamSynchronize", start) for start in (1, 12, 22, 31)),
        *(("Memcpy DtoH (Device -> Pageable)", start) for start in (2, 35, 45)),
    ]
    assert gpu_syncs.tally(events, [3, 4, 6, 7, 11], steps=2) == {
        "first_step": {"warnings": 3, "stream_synchronize": 2, "copies_to_host": 0},
        "later_steps": {"warnings": 5, "stream_synchronize": 1, "copies_to_host": 2},
    }


@pytest.mark.parametrize("method", [None, "plan 3x", "fbcache"])
def test_every_forward_pass_is_marked_and_warnings_are_placed(method):
    """Also where the model is skipped; Wan has two forward passes a step."""
    bench = tiny_bench("wan2.1-1.3b")
    found, _ = gpu_methods.methods(bench, len(find_blocks(bench.pipe.transformer)))

    def warn(pipe, step, timestep, tensors):
        warnings.warn(f"called a {gpu_syncs.WARNING}", stacklevel=1)
        warnings.warn("something else", stacklevel=1)
        return tensors

    watched = dataclasses.replace(bench, call={**bench.call, "callback_on_step_end": warn})
    plain = watched.run if method is None else lambda: found[method].run(watched)
    events, warned = gpu_syncs.watch(watched, plain, [ProfilerActivity.CPU])
    assert warned == [0, 0, 1, 1, 2, 2, 3, 3, 4]
    counts = gpu_syncs.tally(events, warned, STEPS)
    assert [counts[when]["warnings"] for when in ("first_step", "later_steps")] == [1, 3]


def test_attention_backends_agree():
    bench = tiny_bench("cogvideox-2b")
    plain = bench.run().latents.float()
    for name in ("flash", "efficient"):
        with attention(name):
            torch.testing.assert_close(bench.run().latents.float(), plain, rtol=0.1, atol=0.1)


def test_finished_models_are_not_measured_again(results, monkeypatch, capsys):
    folder, _ = results
    before = path(folder, "latte-1").read_bytes()
    monkeypatch.setattr(gpu_measure, "measure", lambda *_, **__: pytest.fail("measured again"))
    assert gpu.main([*command(folder), "--models", "latte-1"]) == 0
    assert "measured already" in capsys.readouterr().err
    assert path(folder, "latte-1").read_bytes() == before


def test_out_of_memory_at_one_model_does_not_stop_the_next(tmp_path, monkeypatch, capsys):
    measured = []

    def measure(name, *_, **__):
        measured.append(name)
        if name == "latte-1":
            raise torch.OutOfMemoryError("tried to allocate")
        return {"model": name}

    monkeypatch.setattr(gpu_measure, "measure", measure)
    models = [*command(tmp_path), "--models", "latte-1,wan2.1-1.3b"]
    assert gpu.main(models) == 1
    failed = json.loads(path(tmp_path, "latte-1").read_text("utf-8"))
    assert failed == {"model": "latte-1", "failed": "out of memory"}
    assert gpu.main(models) == 1
    assert measured == ["latte-1", "wan2.1-1.3b", "latte-1"]  # what failed is tried again


def test_an_interrupted_run_keeps_the_models_it_finished(tmp_path, monkeypatch):
    def measure(name, *_, **__):
        if name == "wan2.1-1.3b":
            raise KeyboardInterrupt
        return {"model": name}

    monkeypatch.setattr(gpu_measure, "measure", measure)
    with pytest.raises(KeyboardInterrupt):
        gpu.main([*command(tmp_path), "--models", "latte-1,wan2.1-1.3b"])
    assert [file.name for file in tmp_path.iterdir()] == ["gpu-latte-1.json"]


def test_models_without_time_are_left_to_the_next_call(tmp_path, monkeypatch, capsys):
    clock = iter([0.0, 10.0, 320.0])
    monkeypatch.setattr(gpu.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(gpu_measure, "measure", lambda name, *_, **__: {"model": name})
    gpu.main([*command(tmp_path), "--models", "latte-1,wan2.1-1.3b"])
    assert "left to the next call: wan2.1-1.3b" in capsys.readouterr().err
    assert not path(tmp_path, "wan2.1-1.3b").exists()


def test_the_page_shows_results_of_full_models_on_a_gpu_only(results, tmp_path):
    folder, found = results
    page = tmp_path / "gpu.md"
    table = ["--table", "--page", str(page), "--output"]
    assert gpu.main([*table, str(folder)]) == 0
    text = page.read_text("utf-8")
    assert "|" not in text
    assert f"--models {','.join(MODELS)}" in text

    result = found["wan2.1-1.3b"] | {"scale": "full", "device_type": "cuda"}
    path(tmp_path, "wan2.1-1.3b").write_text(json.dumps(result), "utf-8")
    assert gpu.main([*table, str(tmp_path)]) == 0
    text = page.read_text("utf-8")
    row = next(line for line in text.splitlines() if line.startswith("| plan 1.5x "))
    assert [cell.strip() for cell in row.split("|")][2] == "75.0 %"
    assert "`pab` was left out" in text
    assert "--models latte-1,open-sora-1.2,cogvideox-2b,hunyuanvideo" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--models", "sora"], "--models sora"),
        (["--steps", "2"], "--steps 2"),
        (["--rounds", "0"], "--rounds 0"),
        pytest.param(
            ["--device", "cuda"],
            "--device cpu --size tiny",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
    ],
)
def test_bad_arguments_end_with_a_line(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        gpu.main(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_plans_add_no_waits_after_the_first_step(tmp_path):
    arguments = ["--device", "cuda", "--size", "tiny", "--models", "wan2.1-1.3b"]
    assert gpu.main([*arguments, "--output", str(tmp_path)]) == 0
    methods = json.loads(path(tmp_path, "wan2.1-1.3b").read_text("utf-8"))["methods"]
    plain = methods["uncached"]["syncs"]["later_steps"]
    for name in ("none", "plan 1.5x", "plan 2x", "plan 3x"):
        later = methods[name]["syncs"]["later_steps"]
        assert all(later[kind] <= plain[kind] for kind in plain)
    assert methods["foresight"]["syncs"]["later_steps"]["warnings"] > plain["warnings"]
    assert all(row["peak_bytes"] > 0 for row in methods.values())
