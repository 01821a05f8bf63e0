"""What a peer learns of a model in one generation, made once and kept as long as the model."""

import json
import weakref
from collections.abc import Callable
from typing import Any

import torch

from foresight.config import GenerationConfig

Numbers = tuple[float, ...]
_KNOWN: weakref.WeakKeyDictionary[torch.nn.Module, dict[str, Numbers]] = weakref.WeakKeyDictionary()


def calibrated_once(
    pipe: Any, config: GenerationConfig, what: str, calibrate: Callable[[], Numbers]
) -> Numbers:
    """Calibrate, unless that was done for this model, configuration and scheduler.

    Args:
        pipe: The pipeline.
        config: Of the generations to come.
        what: Tells the calibrations of a model apart.
        calibrate: Runs one generation and returns what it learned.
    """
    known = _KNOWN.setdefault(pipe.transformer, {})
    scheduler = json.dumps(dict(pipe.scheduler.config), default=str)
    key = f"{what} {config} {type(pipe.scheduler).__name__} {scheduler}"
    if key not in known:
        known[key] = calibrate()
    return known[key]
