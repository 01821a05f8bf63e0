"""Every family of video transformers that diffusers has, under the runtime, at toy size."""

import pytest
from families import FAMILIES
from families.checks import CHECKS, EFFECT, TOLERANCE
from families.outcomes import distance, outcomes, run_plan

from foresight.hooks import RootHook

pytestmark = [
    pytest.mark.filterwarnings("ignore:In CPU autocast"),  # Mochi asks for float32 there
]


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("family", FAMILIES)
def test_family(family: str, check: str):
    CHECKS[check](FAMILIES[family])


@pytest.mark.parametrize("family", ["Wan 2.1", "HunyuanVideo", "Kandinsky 5"])
def test_branches_that_share_do_not_go_unnoticed(family: str, monkeypatch):
    """The same comparison on a runtime that takes all passes of a step for one branch."""
    chosen = FAMILIES[family]
    outcome = outcomes(chosen)[0]
    assert distance(outcome.latents, outcome.latents_by_hand, chosen) < TOLERANCE
    monkeypatch.setattr(RootHook, "branch", "all alike")
    try:
        shared = run_plan(chosen, outcome.plan)
    except (KeyError, RuntimeError):
        return  # it did not even get to the end
    assert distance(shared, outcome.latents_by_hand, chosen) > EFFECT
