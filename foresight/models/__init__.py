"""Models: the embedded ones (clips, parts, recipe), and Open-Sora 1.2, which diffusers lacks."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from foresight.models.opensora.pipeline import OpenSoraPipeline
    from foresight.models.opensora.scheduler import OpenSoraFlowScheduler
    from foresight.models.opensora.transformer import STDiT3Transformer3DModel
    from foresight.models.opensora.vae import AutoencoderKLOpenSora

__all__ = [
    "AutoencoderKLOpenSora",
    "OpenSoraFlowScheduler",
    "OpenSoraPipeline",
    "STDiT3Transformer3DModel",
]

_HOMES = {
    "AutoencoderKLOpenSora": "vae",
    "OpenSoraFlowScheduler": "scheduler",
    "OpenSoraPipeline": "pipeline",
    "STDiT3Transformer3DModel": "transformer",
}


def __getattr__(name: str) -> Any:  # torch and diffusers load at first use
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"foresight.models.opensora.{_HOMES[name]}"), name)
