"""Learned reuse policies for video diffusion transformers."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from foresight.policies import load_policy
    from foresight.session import disable, enable, reuse

__version__ = "0.1.0"
__all__ = ["disable", "enable", "load_policy", "reuse"]

_HOMES = {
    "disable": "foresight.session",
    "enable": "foresight.session",
    "reuse": "foresight.session",
    "load_policy": "foresight.policies",
}


def __getattr__(name: str) -> Any:  # torch loads at first use, so that --help answers at once
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
