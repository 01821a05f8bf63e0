"""What is counted without data, against closed forms and against generations with data."""

import json

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks import gpu, gpu_counts
from benchmarks.gpu_configs import MODELS
from benchmarks.gpu_dataless import META, counted
from benchmarks.gpu_methods import methods
from benchmarks.gpu_models import build_pipeline, call_arguments
from benchmarks.gpu_runs import Bench
from foresight.blocks import find_blocks
from foresight.config import GenerationConfig
from foresight.recorder import TraceRecorder
from foresight.sketch import Sketcher

STEPS = 4
CPU, DTYPE = torch.device("cpu"), torch.bfloat16
PLANS = {"plan 1.5x": 3, "plan 2x": 2, "plan 3x": 1}
# What these keep does not depend on the numbers that they see.
FIXED = {"none", *PLANS, "pab", "taylorseer", "profiler"}


@pytest.fixture(scope="module", params=MODELS)
def both(request):
    """A model's counts, and its generations with data by method."""
    name = request.param
    model = MODELS[name]
    size = model.tiny.sizes[0]
    call = call_arguments(model, model.tiny, size, CPU, DTYPE)
    pipe = build_pipeline(model, model.tiny, CPU, DTYPE)
    bench = Bench(pipe, call, GenerationConfig(*size, STEPS, model.guidance))
    found, _ = methods(bench, len(find_blocks(pipe.transformer)))
    runs = {method: found[method].run(bench) for method in FIXED & found.keys()}
    return gpu_counts.count(name, "tiny", steps=STEPS, say=lambda _: None), runs


def test_what_is_kept_and_computed_is_as_with_data(both):
    counts, runs = both
    for name, run in runs.items():
        row = counts["methods"][name]
        assert row["cache_bytes"] == run.report.cache_bytes
        assert row["compute_fraction"] == pytest.approx(run.report.compute_fraction)


def test_plans_read_nothing_and_thresholds_do(both):
    rows = both[0]["methods"]
    for name, row in rows.items():
        reads = name in {"foresight", "fbcache", "cache-dit"}
        assert (row["later_reads"] > 0) == reads, name


def test_skipped_steps_cost_no_operations(both):
    rows = both[0]["methods"]
    assert rows["none"]["operations_share"] == rows["profiler"]["operations_share"] == 1
    for name, computed in PLANS.items():
        assert rows[name]["operations_share"] == computed / STEPS


def test_blocks_of_all_kinds_are_counted(both):
    kinds = both[0]["blocks"]
    assert all(kind["operations_share"] > 0 for kind in kinds)
    assert 0.5 < sum(kind["operations_share"] for kind in kinds) < 1


def test_operations_are_those_of_closed_forms():
    x, weight = (torch.empty(shape, device=META) for shape in ((7, 5), (3, 5)))
    query = torch.empty(2, 4, 8, 16, device=META)
    with counted() as ledger:
        torch.nn.functional.linear(x, weight)
        assert ledger.operations == 2 * 7 * 5 * 3
        torch.nn.functional.scaled_dot_product_attention(query, query, query)
        assert ledger.operations == 2 * 7 * 5 * 3 + 2 * 2 * 2 * 4 * 8 * 8 * 16
    assert ledger.reads == 0


def test_attention_holds_no_scores():
    query = torch.empty(1, 1, 4096, 16, device=META, dtype=DTYPE)
    with counted() as ledger:
        torch.nn.functional.scaled_dot_product_attention(query, query, query)
    assert ledger.peak < 4 * query.nbytes  # the scores take 256 times as much


def test_bytes_are_counted_while_a_tensor_is_there():
    with counted() as ledger:
        first = torch.empty(1000, device=META)
        view = first[:500]
        assert ledger.held == ledger.peak == 4000
        second = first + 1
        del first
        assert ledger.held == ledger.peak == 8000  # the view holds what it looks at
        del view
        assert ledger.held == 4000
        second.add_(1)
        assert (ledger.held, ledger.peak) == (4000, 8000)


def test_the_peak_is_that_of_torchs_own_profiler():
    layers = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.GELU(), torch.nn.Linear(256, 8))
    x = torch.randn(32, 64)
    with torch.no_grad(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        layers(x)
    held = peak = 0
    for event in trace.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    with counted() as ledger:
        layers.to(META)(x.to(META))
    assert ledger.peak - x.nbytes - sum(p.nbytes for p in layers.parameters()) == peak


@pytest.mark.parametrize("number", [0.0, 1.0])
def test_reads_are_counted_and_copies_made_in_passing_are_not(number):
    x = torch.empty(3, device=META)
    with counted(number) as ledger:
        assert x.sum().item() == number
        assert bool(x.max() > 0.5) == bool(number)
        assert x.cpu().tolist() == [number] * 3
        assert ledger.reads == 3
        x.to("cpu", non_blocking=True)
        x.double()
        assert ledger.reads == 3


@pytest.mark.parametrize("turned", [False, True], ids=["one layout", "two layouts"])
@pytest.mark.parametrize("grid", [(16, 1024), (256, 256)], ids=str)
def test_profiling_takes_little_memory_beside_large_streams(grid, turned):
    """Streams of 72 and 288 MiB, in whichever layout they come; frames may be as many as tokens."""
    frames, tokens = grid
    recorder = TraceRecorder(2, Sketcher())
    with counted() as ledger:
        for block, (rows, columns) in enumerate([grid, (tokens, frames) if turned else grid]):
            stream, output = torch.empty(2, 2 * rows, columns, 1152, device=META, dtype=DTYPE)
            before, ledger.peak = ledger.held, 0
            recorder(0, 0, block, (stream,), (output,))
            assert ledger.peak - before < 64 * 2**20
            assert ledger.held - before < 2**20


def test_counts_are_written_kept_and_shown(tmp_path, capsys):
    arguments = ["--device", "meta", "--size", "tiny", "--models", "wan2.1-1.3b"]
    command = [*arguments, "--steps", str(STEPS), "--output", str(tmp_path)]
    assert gpu.main(command) == 0
    path, page = tmp_path / "counts-wan2.1-1.3b.json", tmp_path / "gpu.md"
    found = json.loads(path.read_text("utf-8"))
    assert gpu.main(command) == 0
    assert "measured already" in capsys.readouterr().err

    table = ["--table", "--page", str(page), "--output", str(tmp_path)]
    assert gpu.main(table) == 0
    assert "Counted" not in page.read_text("utf-8")  # only full models are shown
    path.write_text(json.dumps(found | {"scale": "full"}), "utf-8")
    assert gpu.main(table) == 0
    text = page.read_text("utf-8")
    row = next(line for line in text.splitlines() if line.startswith("| plan 1.5x "))
    assert [cell.strip() for cell in row.split("|")][2:5] == ["75.0 %", "75.0 %", "0"]
    assert "Left out: `pab`" in text
    assert f"--models {','.join(MODELS)}" in text  # all are still to be measured
