"""The policies, and how they are named on the command line."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from foresight.config import UserError
from foresight.policies.base import Controller, Generation, Policy
from foresight.policies.fixed import FewerStepsPolicy, NonePolicy, RandomPolicy, StaticPolicy
from foresight.policies.foresight import ForesightPolicy

__all__ = ["Controller", "Generation", "Policy", "load_policy", "sweep"]

BUILT_IN = {
    "none": NonePolicy,
    "static": StaticPolicy,
    "random": RandomPolicy,
    "fewer-steps": FewerStepsPolicy,
    "foresight": ForesightPolicy,
}


def _kinds() -> dict[str, type[Policy]]:
    """Our policies and the peers by name; peers are built on policies, so they load late."""
    from foresight.peers import PEERS

    return {**BUILT_IN, **PEERS}


def load_policy(spec: str | Path) -> Policy:
    """A built-in policy by name, with options in brackets, or a trained one by folder or hub id.

    A trained one has one option, `[fine_tuned=true]`: see `LearnedPolicy.fine_tuned`.

    Raises:
        UserError: If there is no such policy, option or folder.
    """
    name, bracket, rest = str(spec).partition("[")
    if bracket and not rest.endswith("]"):
        raise UserError(f"policy {spec}: the options lack their closing ]")
    options = _parse_options(str(spec), rest[:-1])
    if name in _kinds():
        return _build(name, options)
    if Path(name).is_dir() or "/" in name:
        return _trained(name, options)
    raise UserError(
        f"unknown policy {str(spec)!r}; choose from {', '.join(_kinds())} or a policy folder"
    )


def _trained(folder: str, options: dict) -> Policy:
    from foresight.policies.learned import LearnedPolicy

    if options not in ({}, {"fine_tuned": True}):
        raise UserError(f"policy {folder} has no other option than [fine_tuned=true]")
    policy = LearnedPolicy.from_pretrained(folder)
    policy.fine_tuned = bool(options)
    return policy


def _parse_options(spec: str, text: str) -> dict:
    options = {}
    for pair in filter(None, map(str.strip, text.split(","))):
        key, equals, value = pair.partition("=")
        if not equals:
            raise UserError(f"policy {spec}: write options as name=value, not {pair!r}")
        try:
            options[key.strip()] = json.loads(value)
        except ValueError:
            options[key.strip()] = value.strip()
    return options


def _build(name: str, options: dict) -> Policy:
    kind: Any = _kinds()[name]
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for key, value in options.items():
        if key not in fields:
            known = ", ".join(fields) or "none"
            raise UserError(f"policy {name} has no option {key!r}; its options: {known}")
        wanted = str if isinstance(fields[key].default, str) else int | float
        if isinstance(value, bool) or not isinstance(value, wanted):
            raise UserError(f"policy {name}: option {key}={value!r} is not of the right type")
    return kind(**options)


def sweep(name: str) -> list[Policy]:
    """A built-in policy over its own knobs, as `foresight compare` runs it."""
    from foresight.peers import PeerPolicy

    if name == "static":
        settings = ((2, 18), (2, 12), *((i, None) for i in (2, 3, 4, 6, 10)))
        return [StaticPolicy(interval=i, warmup_steps=w) for i, w in settings]
    if name == "random":
        return [RandomPolicy(share=s) for s in (0.2, 0.4, 0.6, 0.75, 0.9)]
    if name == "fewer-steps":
        settings = ((f, s) for s in ("same", "dpm++") for f in (0.85, 0.67, 0.5, 0.4, 0.3))
        return [FewerStepsPolicy(fraction=f, solver=s) for f, s in settings]
    if name == "foresight":
        return [
            ForesightPolicy(
                threshold=gamma, recompute_interval=interval, warmup_steps=warmup, cache=cache
            )
            for cache in ("output", "residual")
            for gamma, interval, warmup in (
                (0.5, 2, None),
                (1.0, 2, None),
                (2.0, 2, None),
                (2.0, 3, None),
                (2.0, 5, 3),
                (2.0, 10, 3),
            )
        ]
    policy = load_policy(name)
    return list(policy.sweep()) if isinstance(policy, PeerPolicy) else [policy]
