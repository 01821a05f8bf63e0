"""Measures the runtime on full-size video models with random weights, on a GPU.

    python benchmarks/gpu.py                              all models, call by call
    python benchmarks/gpu.py --models latte-1,wan2.1-1.3b
    python benchmarks/gpu.py --table                      write docs/gpu.md from the results
    python benchmarks/gpu.py --device meta                count what needs no GPU, anywhere
    python benchmarks/gpu.py --device cpu --size tiny     the same code on tiny models, anywhere

Models are built from their published configurations; nothing is downloaded. Random weights cost the
same time and memory as trained ones, and say nothing about quality. HunyuanVideo is run at the
largest of five sizes that fits into the memory and the budget. Of every model are measured:
milliseconds a step and a block, the shares of text encoder, DiT and VAE, the speed-up of plans, of
`foresight` and of other people's caches against the ideal, how often the host waits for the device,
memory, torch.compile of the blocks, planning, and profiling. A model's result is written when it is
done, to gpu-MODEL.json; the next call goes on with the models that have none. With the default
budget a call takes less than ten minutes.

Without a GPU, on tensors that have shapes and no numbers, are counted: operations, bytes kept, peak
memory, and reads of the device in the loop; to counts-MODEL.json.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

RESULTS = ROOT / "benchmarks" / "results"
TINY_RESULTS = ROOT / "runs" / "gpu-tiny"
PAGE = ROOT / "docs" / "gpu.md"
MODELS = ("latte-1", "open-sora-1.2", "cogvideox-2b", "wan2.1-1.3b", "hunyuanvideo")
FEWEST_STEPS = 4  # of which every method computes some and skips some


def main(arguments: list[str] | None = None) -> int:
    """Measure, or write the page; the exit status is 1 if a model failed."""
    parser = _parser()
    args = parser.parse_args(arguments)
    names = args.models.split(",")
    unknown = [name for name in names if name not in MODELS]
    if unknown:
        parser.error(f"--models {','.join(unknown)}: unknown; choose from {', '.join(MODELS)}")
    for flag, least in (("steps", FEWEST_STEPS), ("rounds", 1), ("budget_seconds", 1)):
        if getattr(args, flag) < least:
            name = flag.replace("_", "-")
            parser.error(f"--{name} {getattr(args, flag)}: must be at least {least}")
    if args.table:
        return _write_page(args.output or RESULTS, args.page)
    import torch

    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: there is none here; try --device cpu --size tiny")
    output = args.output or (RESULTS if args.size == "full" else TINY_RESULTS)
    output.mkdir(parents=True, exist_ok=True)
    paths = {name: _path(output, name, counted=args.device == "meta") for name in names}
    todo = {name: path for name, path in paths.items() if args.again or not _finished(path)}
    for name, path in paths.items():
        if name not in todo:
            _tell(f"{name}: measured already in {path}; --again measures it anew")
    return _measure_all(todo, args)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--models", default=",".join(MODELS), help="comma-separated; by default all: %(default)s"
    )
    parser.add_argument(
        "--size",
        choices=("full", "tiny"),
        default="full",
        help="as published, or tiny models of the same architectures to try the command with",
    )
    parser.add_argument("--device", choices=("cuda", "cpu", "meta"), default="cuda")
    parser.add_argument(
        "--steps",
        type=int,
        default=10,
        help="denoising steps of a generation (%(default)s); a step costs the same in longer ones",
    )
    parser.add_argument(
        "--rounds",
        type=int,
        default=3,
        help="how often each method runs beside the untouched pipeline (%(default)s); fewer where "
        "the time is short",
    )
    parser.add_argument(
        "--budget-seconds",
        type=float,
        default=540,
        help="time for this call (%(default)s); a model is begun while half of it is left, and "
        "what then finds no time is named in its result; other models wait for the next call",
    )
    parser.add_argument(
        "--output",
        type=Path,
        help="folder of the results (benchmarks/results, for tiny models runs/gpu-tiny)",
    )
    parser.add_argument("--again", action="store_true", help="measure finished models anew")
    parser.add_argument(
        "--table", action="store_true", help="measure nothing; write the page from the results"
    )
    parser.add_argument(
        "--page", type=Path, default=PAGE, help="where --table writes (docs/gpu.md)"
    )
    return parser


def _measure_all(todo: dict[str, Path], args: argparse.Namespace) -> int:
    from tqdm import tqdm

    from benchmarks.gpu_budget import reason_of, release_memory

    ends, failed = time.monotonic() + args.budget_seconds, 0
    with tqdm(total=len(todo), desc="models", unit="model") as bar:
        for number, (name, path) in enumerate(todo.items()):
            left = ends - time.monotonic()
            if number and left < args.budget_seconds / 2:
                _tell(f"left to the next call: {', '.join(list(todo)[number:])}")
                break
            bar.set_postfix_str(name)
            try:
                result = _result(
                    name, args, left, lambda what, name=name: bar.set_postfix_str(f"{name}: {what}")
                )
            except Exception as error:  # one model's failure must not cost the others their time
                result = {"model": name, "failed": reason_of(error)}
                failed += 1
                _tell(f"{name} failed: {result['failed']}")
            release_memory()
            _write(path, json.dumps(result, indent=1) + "\n")
            bar.update()
    return int(failed > 0)


def _result(
    name: str, args: argparse.Namespace, seconds: float, say: Callable[[str], Any]
) -> dict[str, Any]:
    """What is counted, or measured, of one model."""
    if args.device == "meta":
        from benchmarks.gpu_counts import count

        return count(name, args.size, steps=args.steps, say=say)
    import torch

    from benchmarks.gpu_measure import measure

    device = torch.device(args.device)
    timed = {"steps": args.steps, "rounds": args.rounds, "seconds": seconds}
    return measure(name, args.size, device, **timed, say=say)


def _write_page(output: Path, target: Path) -> int:
    from benchmarks.gpu_table import page

    results: dict[str, Any] = {}
    counts: dict[str, Any] = {}
    for name in MODELS:
        found, counted = (_read(_path(output, name, counted=kind)) for kind in (False, True))
        published = found.get("scale") == "full" and found.get("device_type") == "cuda"
        results[name] = found if published else None
        if counted.get("scale") == "full":
            counts[name] = counted
    _write(target, page(results, counts))
    measured = sum(result is not None for result in results.values())
    _tell(f"{target}: of {len(MODELS)} models {measured} measured, {len(counts)} counted")
    return 0


def _path(output: Path, name: str, *, counted: bool) -> Path:
    return output / f"{'counts' if counted else 'gpu'}-{name}.json"


def _read(path: Path) -> dict[str, Any]:
    """A model's result; empty if there is none."""
    return json.loads(path.read_text("utf-8")) if path.is_file() else {}


def _finished(path: Path) -> bool:
    found = _read(path)
    return bool(found) and "failed" not in found


def _write(path: Path, text: str) -> None:
    """Write beside, then rename: a file that exists is complete."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, "utf-8")
    part.replace(path)


def _tell(text: str) -> None:
    print(text, file=sys.stderr)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
