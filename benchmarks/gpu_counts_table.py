"""The part of `docs/gpu.md` that needs no GPU: what `gpu.py --device meta` counted."""

from collections.abc import Iterator, Mapping

from benchmarks import gpu_labels, markdown
from benchmarks.gpu_labels import Result, mebibytes, percent


def section(counts: Mapping[str, Result]) -> Iterator[str]:
    """The section's lines.

    Args:
        counts: By model, in the order of the page, of full models.
    """
    yield from ["## Counted, on any machine", "", _INTRODUCTION, ""]
    header = ["model", "video", "TFLOP a step", "of it in blocks", "plan at 2x keeps", "PAB"]
    rows = map(_summary, counts.values())
    yield from markdown.table([*header, "Foresight", "profiler's peak over uncached"], rows)
    yield ""
    for result in counts.values():
        yield from [f"### {result['title']}", "", _facts(result), ""]
        header = ["method", "computed", "FLOP", "reads", "kept", "peak over uncached"]
        yield from markdown.table(header, _methods(result))
        yield ""
        left_out = [f"`{what}`: {reason}" for what, reason in result["left_out"].items()]
        if left_out:
            yield from [f"Left out: {'; '.join(left_out)}.", ""]


def _summary(result: Result) -> list[str]:
    methods = result["methods"]
    share = sum(kind["operations_share"] for kind in result["blocks"])
    kept = [
        mebibytes(methods[name]["cache_bytes"]) if name in methods else "-"
        for name in ("plan 2x", "pab", "foresight")
    ]
    return [
        result["title"],
        gpu_labels.video(result),
        f"{methods['uncached']['operations'] / result['steps'] / 1e12:,.1f}",
        f"{100 * share:.2f} %",
        *kept,
        mebibytes(methods["profiler"]["extra_peak_bytes"]),
    ]


def _facts(result: Result) -> str:
    kinds = "; ".join(
        f"{kind['count']} `{kind['kind']}`, {percent(kind['operations_share'])}"
        for kind in result["blocks"]
    )
    return (
        f"{result['parameters'] / 1e9:.2f} B parameters, {result['dtype']}, guidance "
        f"{result['guidance_scale']:g}, {result['steps']} steps; FLOP in blocks: {kinds}."
    )


def _methods(result: Result) -> Iterator[list[str]]:
    for name, row in result["methods"].items():
        if name == "uncached":
            continue
        yield [
            gpu_labels.method(name, row),
            percent(row["compute_fraction"]),
            percent(row["operations_share"]),
            str(row["later_reads"]),
            mebibytes(row["cache_bytes"]),
            mebibytes(row["extra_peak_bytes"]),
        ]


_INTRODUCTION = """\
Made by `python benchmarks/gpu.py --device meta`, in minutes and without a GPU: the same pipelines,
sizes and code, but the transformer's tensors have shapes and no numbers, so that nothing has to be
computed. It says what does not depend on speed. Where a method asks for a number it gets a zero (a
one where it calibrates), so what it then decides means nothing; what it keeps and how often it asks
does.

- **FLOP**: floating-point operations in matrix products, convolutions and attention (two to a
  multiplication and addition), in all steps, of the uncached pipeline's.
- **Reads**: how often the host waits for numbers within the model's forward passes, from the second
  step on.
- **Kept**: the most that is held from one forward pass to the next.
- **Peak over uncached**: most bytes in tensors at one time, less those of the untouched pipeline,
  weights and whatever kernels take for themselves aside."""
