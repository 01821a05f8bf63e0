"""What is counted of one model without a GPU, at any size: bytes, reads and operations."""

import contextlib
import dataclasses
from collections import defaultdict
from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import Any

import torch

from benchmarks.gpu_budget import Budget
from benchmarks.gpu_configs import MODELS
from benchmarks.gpu_dataless import META, Ledger, counted, run_without_data
from benchmarks.gpu_methods import UNCACHED, Method, computed_shares, methods
from benchmarks.gpu_models import DTYPE, build_pipeline, call_arguments, heading
from benchmarks.gpu_runs import PROBE_STEPS, Bench, Run
from foresight.blocks import find_blocks
from foresight.config import GenerationConfig

Say = Callable[[str], Any]


def count(name: str, scale_name: str, *, steps: int, say: Say) -> dict[str, Any]:
    """Build a model without data, at its largest size, and count what each method does.

    Args:
        name: Of the model.
        scale_name: "full" or "tiny".
        steps: Denoising steps of each generation.
        say: Told what is being done.
    """
    model, budget = MODELS[name], Budget(float("inf"))
    scale = model.scale(scale_name)
    say("build")
    pipe = build_pipeline(model, scale, META, DTYPE)
    run_without_data(pipe)
    size = scale.sizes[0]
    call = call_arguments(model, scale, size, torch.device("cpu"), DTYPE)
    bench = Bench(pipe, call, GenerationConfig(*size, steps, model.guidance))
    with counted():
        bench.run("none", steps=PROBE_STEPS)  # watches the model, once
    say(UNCACHED)
    uncached, kinds = count_uncached(bench)
    blocks = len(find_blocks(pipe.transformer))
    found, budget.left_out = methods(bench, blocks)
    rows = {UNCACHED: uncached}
    for method_name, method in found.items():
        say(method_name)
        row = budget.attempt(method_name, lambda method=method: count_method(bench, method))
        if row is not None:
            extra = row["peak_bytes"] - uncached["peak_bytes"]
            share = row["operations"] / uncached["operations"]
            rows[method_name] = row | {"extra_peak_bytes": extra, "operations_share": share}
    return {
        **heading(name, model, scale_name, steps),
        "torch": torch.__version__,
        "diffusers": version("diffusers"),
        "video": dict(zip(("height", "width", "frames"), size, strict=True)),
        "parameters": sum(p.numel() for p in pipe.transformer.parameters()),
        "blocks": kinds,
        "methods": rows,
        "left_out": budget.left_out,
    }


def count_method(bench: Bench, method: Method) -> dict[str, Any]:
    """One generation with a method, calibrated for a model of which all steps are alike."""
    with counted(number=1.0):
        ready = dataclasses.replace(method, policy=bench.prepared(method.policy))
    with counted() as ledger:
        made, row = _count(bench, ledger, lambda: ready.run(bench))
    assert made.report is not None
    return {
        "setting": method.policy.setting,
        **row,
        "compute_fraction": float(computed_shares(made.report).mean()),
        "cache_bytes": made.report.cache_bytes,
    }


def count_uncached(bench: Bench) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """One generation of the untouched pipeline; beside it, for each kind of block its part."""
    blocks = find_blocks(bench.pipe.transformer)
    spent: dict[str, int] = defaultdict(int)
    counts: dict[str, int] = defaultdict(int)
    with contextlib.ExitStack() as stack, counted() as ledger:
        for block in blocks:
            counts[block.kind] += 1
            stack.enter_context(_adding(block.module, ledger, spent, block.kind))
        _, row = _count(bench, ledger, bench.run)
    kinds = [
        {"kind": kind, "count": count, "operations_share": spent[kind] / row["operations"]}
        for kind, count in counts.items()
    ]
    return row, kinds


@contextlib.contextmanager
def _adding(
    module: torch.nn.Module, ledger: Ledger, spent: dict[str, int], kind: str
) -> Iterator[None]:
    """While inside, what a module does is added to its kind."""

    def begin(*_: Any) -> None:
        spent[kind] -= ledger.operations

    def end(*_: Any) -> None:
        spent[kind] += ledger.operations

    handles = [module.register_forward_pre_hook(begin), module.register_forward_hook(end)]
    yield
    for handle in handles:
        handle.remove()


def _count(bench: Bench, ledger: Ledger, run: Callable[[], Run]) -> tuple[Run, dict[str, Any]]:
    """A generation, and what a fresh ledger, which is open, says of it.

    `later_reads` are those within the transformer's forward passes from the second step on; before,
    policies plan, and models are watched.
    """
    marks: list[int] = []  # before and after each forward pass
    transformer = bench.pipe.transformer
    with contextlib.ExitStack() as stack:
        for register in (transformer.register_forward_pre_hook, transformer.register_forward_hook):
            stack.callback(register(lambda *_: marks.append(ledger.reads)).remove)
        made = run()
    within = [after - before for before, after in zip(marks[::2], marks[1::2], strict=True)]
    row = {
        "operations": ledger.operations,
        "peak_bytes": ledger.peak,
        "later_reads": sum(within[len(within) // bench.steps :]),
    }
    return made, row
