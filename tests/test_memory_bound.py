"""Trained policies that may keep so many bytes and no more, on pipelines that call models twice."""

import functools

import numpy as np
import pytest
import torch
from families import FAMILIES
from families.family import STEPS, Family

import foresight
from foresight.config import UserError
from foresight.fingerprint import fingerprint
from foresight.plan import COMPUTE, HISTORY, Plan
from foresight.policies.learned import LearnedPolicy
from foresight.policies.network import ReuseModel
from foresight.session import Session
from foresight.solver import euler_solver


@functools.cache
def prepared(family: Family):
    """A pipeline, an untrained policy for it, and the bytes of a prediction with guidance."""
    pipe = family.build()
    with foresight.reuse(pipe, "none") as session:
        latents = family.run(pipe)
    blocks, width = session.generation.num_blocks, len(session.generation.prompt_embedding)
    torch.manual_seed(0)
    model, grid = ReuseModel(blocks, width, num_levels=8, profiled_steps=[8]), np.linspace(1, 0, 8)
    walk = np.random.default_rng(0).normal(size=(8, 20)).cumsum(axis=0)
    model.paths[0].fit(grid, walk @ walk.T, euler_solver(grid), guidance_scale=4.0)
    costs = {"block_seconds": [1.0] * blocks, "overhead_seconds": 0.0, "skip_seconds": 0.0}
    return pipe, LearnedPolicy(model, fingerprint(pipe), costs).at(2.0), 2 * latents.nbytes


@pytest.fixture(params=["Latte", "Wan 2.1"], ids=["fused", "apart"])
def family(request) -> Family:
    """One that evaluates guidance in one batch, and one that calls the model twice."""
    family = FAMILIES[request.param]
    assert family.branches == ("apart" if request.param == "Wan 2.1" else "fused")
    return family


def run(family: Family, bound: int | None) -> tuple[Session, Plan, torch.Tensor]:
    pipe, policy, _ = prepared(family)
    with foresight.reuse(pipe, policy, max_cache_bytes=bound) as session:
        latents = family.run(pipe)
    assert session.plan is not None
    return session, session.plan, latents


def test_a_bound_is_for_all_that_is_kept_at_any_time(family):
    """One, two or three predictions of both branches, and a byte less than one more."""
    (_, _, one), held = prepared(family), []
    for kept in range(1, HISTORY + 1):
        for bound in (kept * one, (kept + 1) * one - 1):
            session, plan, _ = run(family, bound)
            held.append(session.report().cache_bytes / one)
            assert 0 < held[-1] <= kept
            assert not plan.weights[:, kept:].any()
            assert plan.weights[:, :kept].any(axis=0).all()
            assert (plan.actions[:, 0] == COMPUTE).sum() == STEPS / 2
    assert max(held) > min(held) == 1


def test_a_bound_below_one_prediction_is_refused_before_the_first_block(family):
    _, _, one = prepared(family)
    with pytest.raises(UserError, match=rf"max_cache_bytes={one - 1} .* takes {one},"):
        run(family, one - 1)
    run(family, one)


def test_without_a_bound_or_with_a_wide_one_nothing_changes(family):
    _, _, one = prepared(family)
    _, plan, latents = run(family, None)
    assert plan.weights.any(axis=0).all()
    for bound in (HISTORY * one, 10**12):
        _, wide, found = run(family, bound)
        assert (wide.actions == plan.actions).all()
        assert (wide.weights == plan.weights).all()
        assert torch.equal(found, latents)
    assert not torch.equal(run(family, one)[2], latents)


def test_without_guidance_a_prediction_is_that_of_one_branch(family):
    pipe, policy, one = prepared(family)
    with foresight.reuse(pipe, policy, max_cache_bytes=one // 2) as session:
        pipe(
            **family.call | {"guidance_scale": 1.0},
            generator=torch.Generator("cpu").manual_seed(0),
        )
    assert session.generation.prediction_bytes == one // 2
    assert session.report().cache_bytes == one // 2


def test_other_policies_refuse_a_bound_and_leave_the_pipeline_alone(family):
    pipe, *_ = prepared(family)
    with pytest.raises(UserError, match="static cannot be held to 1000000 cached bytes"):
        foresight.enable(pipe, "static", max_cache_bytes=10**6)
    with pytest.raises(UserError, match="no foresight policy is enabled"):
        foresight.disable(pipe)
