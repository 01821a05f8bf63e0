"""What a comparison runs: methods at their settings, without those that do not apply."""

import dataclasses
import logging
import math
from collections.abc import Sequence
from typing import Any

from foresight.config import UserError
from foresight.peers import PeerPolicy, misfits
from foresight.peers.fitness import Generate
from foresight.policies import load_policy, sweep
from foresight.policies.base import Policy
from foresight.policies.learned import LearnedPolicy

_LOGGER = logging.getLogger(__name__)
SPEEDUPS = (1.2, 1.5, 1.75, 2.0, 2.5, 3.3)  # beyond both ends of what is read off


@dataclasses.dataclass(frozen=True)
class Variant:
    """One method at one setting."""

    method: str
    setting: str
    policy: Policy
    learned: bool = False
    requested_speedup: float = math.nan
    requested_quality: float = math.nan


def method_of(spec: str) -> str:
    """The name in `name[option=value]`."""
    return spec.partition("[")[0]


def left_out(pipe: Any, policies: Sequence[str], generate: Generate) -> dict[str, str]:
    """The peers that do not apply to a pipeline, and why; each is logged as a warning.

    Args:
        pipe: A diffusers pipeline.
        policies: As `expand` takes them.
        generate: Final latents of one generation under a policy, or uncached for None.

    Raises:
        UserError: If a policy is unknown, or none is left.
    """
    loaded = {method_of(spec): load_policy(spec) for spec in policies}
    peers = {name: policy for name, policy in loaded.items() if isinstance(policy, PeerPolicy)}
    reasons = misfits(pipe, peers, generate)
    for name, reason in reasons.items():
        _LOGGER.warning("skipping %s, which does not apply to this model: %s", name, reason)
    if reasons and len(reasons) == len(loaded):
        raise UserError(f"--policies {','.join(policies)}: none of them applies to this model")
    return reasons


def expand(
    pipe: Any,
    policies: Sequence[str],
    speedups: Sequence[float],
    qualities: Sequence[float] = (),
) -> list[Variant]:
    """The settings to run: a sweep over its knob for a plain name, one for a name with options.

    Args:
        pipe: A diffusers pipeline.
        policies: Names, names with options, and folders of trained policies.
        speedups: Asked of trained policies.
        qualities: PSNR in dB, asked of them as well.

    Raises:
        UserError: If a policy is unknown or unfit for the pipeline, given twice, or cannot reach a
            speed-up.
    """
    variants: list[Variant] = []
    for spec in policies:
        policy = load_policy(spec)
        policy.check(pipe)
        if isinstance(policy, LearnedPolicy):
            for asked in speedups:
                at = policy.at(asked)
                variants.append(Variant(at.name, at.setting, at, True, requested_speedup=asked))
            for asked in qualities:
                at = policy.reaching(asked)
                variants.append(Variant(at.name, at.setting, at, True, requested_quality=asked))
            continue
        swept = [policy] if "[" in spec else sweep(policy.name)
        swept = [p for p in swept if not (isinstance(p, PeerPolicy) and p.unfit(pipe))]
        variants += [Variant(p.name, p.setting, p) for p in swept]
    if not variants or len({(v.method, v.setting) for v in variants}) < len(variants):
        raise UserError(f"--policies {','.join(policies)} must name each policy and setting once")
    return variants
