"""Peers on tiny pipelines: what the tests of peers share."""

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from families import FAMILIES

from foresight.config import GenerationConfig
from foresight.peers import PeerPolicy
from foresight.peers.session import PeerSession
from foresight.policies import load_policy

CONFIG = GenerationConfig(32, 32, 9, 6, 4.0)
EAGER = {  # settings at which every peer skips much of six steps
    "pab": "pab[start=2000,end=-1]",
    "fbcache": "fbcache[threshold=9]",
    "magcache": "magcache[threshold=9,max_skips=9,retention=0]",
    "taylorseer": "taylorseer[interval=3,warmup_steps=2]",
    "fastercache": "fastercache[start=2000,uncond=3]",
    "cache-dit": "cache-dit[threshold=9,warmup_steps=1]",
    "teacache": "teacache[threshold=9]",
}
_MADE: dict[str, tuple] = {}


def made(family: str) -> tuple[Any, torch.Tensor]:
    """A tiny pipeline and its uncached latents, made once."""
    if family not in _MADE:
        pipe = FAMILIES[family].build()
        _MADE[family] = pipe, FAMILIES[family].run(pipe)
    return _MADE[family]


def peer(spec: str, family: str) -> PeerPolicy:
    """A peer ready for a tiny pipeline."""
    if spec.startswith("cache-dit"):
        pytest.importorskip("cache_dit")
    pipe, _ = made(family)
    policy = load_policy(spec)
    assert isinstance(policy, PeerPolicy)
    return policy.prepared(pipe, CONFIG, lambda: FAMILIES[family].run(pipe))


@contextlib.contextmanager
def running(pipe: Any, policy: PeerPolicy) -> Iterator[PeerSession]:
    session = PeerSession(pipe, policy).enable()
    try:
        yield session
    finally:
        session.disable()
