"""How often a denoising loop makes the host wait for the GPU."""

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks.gpu_runs import Bench

MARK = "a forward pass of the transformer begins"
WARNING = "synchronizing CUDA operation"
WAIT, COPY = "cudaStreamSynchronize", "Memcpy DtoH"
_HOST = DeviceType.CPU
Counts = dict[str, dict[str, int]]
Event = tuple[str, int]  # name, and when it begins, in nanoseconds


def count_syncs(bench: Bench, run: Callable[[], Any]) -> Counts | None:
    """Waits in the first step, where policies plan, and in all later ones; None without a GPU.

    They are counted twice: by the warnings of `torch.cuda.set_sync_debug_mode`, and in a profiler's
    trace.

    Args:
        bench: What is run.
        run: Runs one generation of its steps.
    """
    if bench.device.type != "cuda":
        run()
        return None
    torch.cuda.set_sync_debug_mode("warn")
    try:
        events, warned = watch(bench, run, [ProfilerActivity.CPU, ProfilerActivity.CUDA])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return tally(events, warned, bench.steps)


def watch(
    bench: Bench, run: Callable[[], Any], activities: Sequence[ProfilerActivity]
) -> tuple[list[Event], list[int]]:
    """Run under the profiler.

    Returns:
        The trace's waits and copies to the host, with a mark where each forward pass of the
        transformer begins; and the number of warnings before each forward pass and at the end.
    """
    warned: list[int] = []

    def mark(*_: Any) -> None:
        warned.append(_relevant(caught))
        with record_function(MARK):
            pass

    handle = bench.pipe.transformer.register_forward_pre_hook(mark)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            with profile(activities=activities) as trace:
                run()
                warned.append(_relevant(caught))
    finally:
        handle.remove()
    # Not `trace.events()`, which makes a tree of Python objects of all events, for minutes.
    assert trace.profiler is not None
    assert trace.profiler.kineto_results is not None
    recorded = trace.profiler.kineto_results.events()
    events = [(event.name(), event.start_ns(), event.device_type()) for event in recorded]
    marks = [(name, start) for name, start, kind in events if name == MARK and kind == _HOST]
    return marks + [e[:2] for e in events if e[0] == WAIT or e[0].startswith(COPY)], warned


def tally(events: Sequence[Event], warned: Sequence[int], steps: int) -> Counts:
    """Sort what was seen into the first step and the later ones.

    Args:
        events: As `watch` returns them.
        warned: Likewise.
        steps: S, of equally many forward passes each; at least 2.
    """
    marks = sorted(start for name, start in events if name == MARK)
    calls = len(marks) // steps
    windows = {
        "first_step": (marks[0], marks[calls], warned[calls] - warned[0]),
        "later_steps": (marks[calls], math.inf, warned[-1] - warned[calls]),
    }
    return {
        when: {
            "warnings": num_warnings,
            "stream_synchronize": sum(n == WAIT and begin <= t < end for n, t in events),
            "copies_to_host": sum(n.startswith(COPY) and begin <= t < end for n, t in events),
        }
        for when, (begin, end, num_warnings) in windows.items()
    }


def _relevant(caught: Iterable[warnings.WarningMessage]) -> int:
    return sum(WARNING in str(item.message) for item in caught)
