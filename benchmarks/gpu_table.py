"""`docs/gpu.md`: the results of `gpu.py` as tables."""

from collections.abc import Iterator, Mapping

from benchmarks import gpu_counts_table, gpu_labels, markdown
from benchmarks.gpu_labels import Result, mebibytes, percent


def page(results: Mapping[str, Result | None], counts: Mapping[str, Result]) -> str:
    """The page as Markdown.

    Args:
        results: By model, in the order of the page; None where a model has not been measured on a
            GPU at its full scale.
        counts: Likewise, of what was counted without one.
    """
    measured = {name: result for name, result in results.items() if result is not None}
    missing = [name for name in results if name not in measured]
    lines = ["# On a GPU", ""]
    if measured:
        lines += [_INTRODUCTION, "", *_models(measured), "", *_costs(measured), ""]
        for result in measured.values():
            lines += [f"## {result['title']}", "", *_model(result), ""]
    if missing:
        command = f"python benchmarks/gpu.py --models {','.join(missing)}"
        lines += [_MISSING.format(names=", ".join(missing), command=command), ""]
    if counts:
        lines += gpu_counts_table.section(counts)
    return "\n".join(lines).rstrip() + "\n"


def _models(measured: Mapping[str, Result]) -> Iterator[str]:
    header = ["model", "video", "parameters", "ms a step", "text encoder", "DiT", "VAE"]
    rows = []
    for result in measured.values():
        shares = [_share(result["parts"][name]) for name in ("text_encoder", "dit", "vae")]
        parameters = f"{result['parameters'] / 1e9:.2f} B"
        step = f"{1e3 * result['step_seconds']:.1f}"
        rows.append([result["title"], gpu_labels.video(result), parameters, step, *shares])
    yield from markdown.table(header, rows)


def _costs(measured: Mapping[str, Result]) -> Iterator[str]:
    yield "## What the runtime costs"
    yield ""
    header = ["model", "hooks", "hooks, compiled", "recompiles", "planning", "profiler"]
    yield from markdown.table([*header, "profiler's memory"], map(_cost, measured.values()))


def _cost(result: Result) -> list[str]:
    methods, compiled, planning = result["methods"], result["compile"], result["planning"]
    hooks, profiler = (
        percent(1 / methods[name]["speedup"] - 1) if name in methods else "-"
        for name in ("none", "profiler")
    )
    return [
        result["title"],
        hooks,
        percent(compiled["hooks_overhead"]) if compiled else "-",
        str(compiled["recompiles"]) if compiled else "-",
        f"{1e3 * planning['seconds']:.0f} ms" if planning else "-",
        profiler,
        mebibytes(methods["profiler"]["extra_peak_bytes"]) if "profiler" in methods else "-",
    ]


def _model(result: Result) -> Iterator[str]:
    kinds = "; ".join(
        f"{kind['count']} `{kind['kind']}`, {1e3 * kind['seconds_per_step']:.2f} ms each"
        for kind in result["blocks"] or ()
    )
    rounds = len(result["methods"]["uncached"]["seconds"])
    yield (
        f"{result['device']}, torch {result['torch']}, diffusers {result['diffusers']}, "
        f"{result['dtype']}, attention by `{result['attention']['chosen']}`; "
        f"{gpu_labels.video(result)}, {result['steps']} steps, guidance "
        f"{result['guidance_scale']:g}, rounds: {rounds}."
    )
    if kinds:
        yield f"In a step of {1e3 * result['step_seconds']:.1f} ms: {kinds}."
    yield ""
    header = ["method", "computed", "speed-up", "ideal", "of the ideal", "ceiling", "waits, step 1"]
    yield from markdown.table(
        [*header, "waits, later", "cached", "peak over uncached"], _methods(result)
    )
    yield ""
    compiled = result["compile"]
    if compiled:
        yield (
            f"`torch.compile` of {compiled['blocks']} blocks: {compiled['graphs']} graphs, "
            f"{compiled['graph_breaks']} breaks, {compiled['recompiles']} recompilations under the "
            f"runtime; {compiled['speedup_over_eager']:.2f}x over eager, and with the plan at 2x "
            f"another {compiled['plan_speedup']:.2f}x."
        )
        yield ""
    for size, reason in result["sizes_refused"].items():
        yield f"- {size} was not measured: {reason}."
    for what, reason in result["left_out"].items():
        yield f"- `{what}` was left out: {reason}."


def _methods(result: Result) -> Iterator[list[str]]:
    for name, row in result["methods"].items():
        waits = row["syncs"] or {}
        shown = [_waits(waits.get(when)) for when in ("first_step", "later_steps")]
        if name == "uncached":
            yield [name, "100 %", "1", "1", "-", "-", *shown, "-", "-"]
            continue
        yield [
            gpu_labels.method(name, row),
            percent(row["compute_fraction"]),
            f"{row['speedup']:.2f}",
            f"{row['ideal_speedup']:.2f}",
            f"{row['realised_over_ideal']:.3f}",
            f"{row['ceiling_speedup']:.2f}",
            *shown,
            mebibytes(row["cache_bytes"]),
            mebibytes(row["extra_peak_bytes"]),
        ]


def _waits(counts: Mapping[str, int] | None) -> str:
    names = ("warnings", "stream_synchronize", "copies_to_host")
    return "-" if counts is None else " / ".join(str(counts[name]) for name in names)


def _share(part: Mapping[str, float] | None) -> str:
    return "not measured" if part is None else f"{part['seconds']:.2f} s, {percent(part['share'])}"


_INTRODUCTION = """\
Made by `python benchmarks/gpu.py`, then `--table`; every number is in
`benchmarks/results/gpu-MODEL.json`. Models are built from their published configurations with
random weights, which cost the same time and memory as trained ones. **Nothing here is about
quality**, and what caches that look at features decide on random weights (`foresight`, `fbcache`,
`magcache`, `cache-dit`) means nothing: read their speed-up against the ideal.

- **Speed-up**: denoising time of the untouched pipeline over that with the method, both from one
  round in random order; medians over rounds.
- **Ideal**: what it would be if what was skipped, whose time is measured in the same process, cost
  nothing, and the rest as much as before. Plans at the output also skip most of what is around the
  blocks, so they may beat it; **ceiling** is one over the share that was computed.
- **Waits**: how often the host waited for the GPU in the first step, where policies plan, and in
  all later ones: warnings of `torch.cuda.set_sync_debug_mode` / `cudaStreamSynchronize` / copies to
  the host, in a profiler's trace. Those of the untouched pipeline are the pipeline's own.
- **Text encoder, DiT, VAE**: of a generation with as many steps as the release takes, from the
  measured time of a step.
- **Hooks**, **profiler**: time added to a generation. **Planning** is that of a learned policy with
  a network of random weights, for 60 blocks and 50 steps, on one core."""

_MISSING = """\
Not measured yet: {names}. On a machine with a CUDA device,

    {command}
    python benchmarks/gpu.py --table

build the models from their published configurations with random weights (no download), measure
them and write this page. A call takes about as long as `--budget-seconds` says (540); repeat the
first command until no model is left."""
