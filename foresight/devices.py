"""What generations run on, and the most memory they held there."""

import math
from pathlib import Path
from typing import Any

import torch


def device_name(pipe: Any) -> str:
    """The GPU's name, or the processor's where it is known, and the threads used."""
    if pipe.device.type == "cuda":
        return torch.cuda.get_device_name(pipe.device)
    name = _processor() if pipe.device.type == "cpu" else pipe.device.type
    return f"{name}, {torch.get_num_threads()} threads"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]} CPU" if names else "cpu"


def reset_peak_memory(pipe: Any) -> None:
    """Forget the peak so far, where the system allows it."""
    if pipe.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(pipe.device)
        return
    try:
        Path("/proc/self/clear_refs").write_text("5")  # Linux: the highest resident size
    except OSError:
        return


def peak_memory(pipe: Any) -> float:
    """Most bytes since the reset: of the GPU's allocator, or resident in this process; else NaN."""
    if pipe.device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(pipe.device))
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return math.nan
    sizes = [float(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")]
    return sizes[0] if sizes else math.nan
