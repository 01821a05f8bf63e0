"""Whether a peer is right on a pipeline: with nothing skipped it must change nothing."""

from collections.abc import Callable
from typing import Any

import torch

from foresight.peers.base import NotApplicableError, PeerPolicy

TOLERANCE = 0.01  # relative; a right peer is exact but for the order of sums
Generate = Callable[[PeerPolicy | None], torch.Tensor]


def misfits(pipe: Any, peers: dict[str, PeerPolicy], generate: Generate) -> dict[str, str]:
    """The peers that are wrong or fail on a pipeline, and why.

    Args:
        pipe: The pipeline.
        peers: By method name.
        generate: Final latents of one generation, the same every time but for the policy; None is
            the uncached run. Called once for each peer that is not ruled out beforehand.
    """
    reasons = {name: peer.unfit(pipe) for name, peer in peers.items()}
    reference = None
    for name, peer in peers.items():
        if reasons[name] is None:
            reference = generate(None) if reference is None else reference
            reasons[name] = _tried(peer, reference, generate)
    return {name: reason for name, reason in reasons.items() if reason is not None}


def _tried(peer: PeerPolicy, reference: torch.Tensor, generate: Generate) -> str | None:
    try:
        latents = generate(peer.inert())
    except NotApplicableError as error:
        return error.reason
    except Exception as error:  # whatever it is: the uncached run went well
        lines = str(error).strip().splitlines() or ["no message"]
        return f"it fails there with {type(error).__name__}: {lines[0]}"
    off = float((latents - reference).norm() / reference.norm())
    if off <= TOLERANCE:
        return None
    return f"even with nothing skipped its latents are {off:.0%} off the uncached run's"
