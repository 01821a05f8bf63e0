"""What must hold of every family under the runtime; each check raises if it does not."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

import foresight
from foresight.plan import COMPUTE, HISTORY, Plan, plain_weights
from foresight.policies.fixed import FixedPlan
from foresight.recorder import TraceRecorder
from foresight.sketch import Sketcher

from .by_hand import ByHand
from .facts import is_as_described
from .family import STEPS, Family
from .outcomes import (
    columns,
    computed,
    computed_by_hand,
    distance,
    outcomes,
    plans,
    run_plan,
    uncached,
)

TOLERANCE = 1e-5  # of the latents' standard deviation: a few rounding errors
EFFECT = 100 * TOLERANCE
SKETCH_WIDTH = 20_011  # more numbers than any residual has, so that sketches are exact


class StopHereError(Exception):
    """Raised in the middle of a generation."""


def finds_the_blocks(family: Family) -> None:
    """All that carry the video, in execution order; those that carry text may be among them."""
    found = columns(family)
    expected = [name for name in family.text_blocks if name in found] + list(family.blocks)
    assert list(found) == expected, f"found {found}"


def computing_all_is_bit_identical(family: Family) -> None:
    """A policy that computes everything changes no bit."""
    assert torch.equal(computed(family)[1], uncached(family))


def executes_the_plan(family: Family) -> None:
    """Calls that reach the blocks' own forwards are those that the plan computes."""
    for outcome in outcomes(family):
        assert outcome.calls == outcome.calls_by_hand, "other blocks ran than planned"
        assert len(outcome.calls) < outcome.plan.actions.size * family.calls, "nothing was skipped"
        computed = np.zeros(outcome.plan.shape, bool)
        for step, _, block in outcome.calls:
            computed[step, columns(family).index(block)] = True
        assert ((outcome.reported == COMPUTE) == computed).all(), "the report says otherwise"


def matches_a_loop_by_hand(family: Family) -> None:
    """Reuse and forecasts equal plain code that stores every residual by itself."""
    for outcome in outcomes(family):
        effect = distance(outcome.latents_by_hand, uncached(family), family)
        assert effect > EFFECT, "the plan has no effect"
        error = distance(outcome.latents, outcome.latents_by_hand, family)
        assert error < TOLERANCE, f"off by {error:.1e} standard deviations"


def keeps_branches_apart(family: Family) -> None:
    """Sharing what is stored between guidance branches would give another video."""
    outcome = outcomes(family)[0]
    shared = ByHand(family, outcome.plan, columns(family), mixed_up=True).run()
    effect = distance(shared, outcome.latents_by_hand, family)
    assert effect > EFFECT, "branches are too alike to tell"
    error = distance(outcome.latents, outcome.latents_by_hand, family)
    assert error < TOLERANCE, f"off by {error:.1e} standard deviations"


def forgets_an_interrupted_generation(family: Family) -> None:
    """After an exception or an interruption, the next generation is a fresh one bit for bit."""
    plan, fresh = outcomes(family)[0].plan, outcomes(family)[0].latents
    pipe = family.build()
    trap = _Trap(pipe.transformer.get_submodule(family.blocks[-1]))
    for stop in (_block_raises, _is_interrupted, _callback_raises):
        with foresight.reuse(pipe, FixedPlan(plan)):
            stop(family, pipe, trap)
            assert torch.equal(family.run(pipe), fresh), f"{stop.__name__}: something is left"


class _Trap:
    """Does something inside a block's own forward, once, when it has been called often enough."""

    def __init__(self, block: torch.nn.Module) -> None:
        self._forward, self._left, self._act = block.forward, 0, _raise
        block.forward = self._call

    def set(self, calls: int, act: Callable[[], None]) -> None:
        self._left, self._act = calls, act

    def _call(self, *args: Any, **kwargs: Any) -> Any:
        self._left -= 1
        if self._left == 0:
            self._act()
        return self._forward(*args, **kwargs)


def _block_raises(family: Family, pipe: Any, trap: _Trap) -> None:
    """In the last guidance branch of the second computed step."""
    trap.set(2 * family.calls, _raise)
    _expect_stop(family, pipe)


def _is_interrupted(family: Family, pipe: Any, trap: _Trap) -> None:
    trap.set(2 * family.calls, lambda: setattr(pipe, "_interrupt", True))
    family.run(pipe, seed=1)
    assert pipe.interrupt, "the generation was to be interrupted"


def _callback_raises(family: Family, pipe: Any, trap: _Trap) -> None:
    def callback(pipe: Any, step: int, timestep: Any, tensors: dict) -> dict:
        if step == STEPS // 2:
            _raise()
        return tensors

    if family.has_callback:
        _expect_stop(family, pipe, callback_on_step_end=callback)


def disable_restores_the_pipeline(family: Family) -> None:
    """The pipeline computes as before, and nothing hangs on its scheduler or its blocks."""
    pipe = family.build()
    family.run(pipe)  # schedulers get some of their attributes when they are first used
    before = _attributes(family, pipe)
    for plan in plans(family):
        run_plan(family, plan, pipe)
        assert _attributes(family, pipe) == before, "something is left on the pipeline"
    assert torch.equal(family.run(pipe), uncached(family))


def knows_what_predictions_take(family: Family) -> None:
    """What is said before the first step bounds what a plan keeps, by no more than twice that."""
    computed, weights = np.arange(STEPS) < STEPS - 2, plain_weights(STEPS)
    weights[~computed] = 1 / HISTORY
    plan, pipe = Plan.of_output(computed, weights, len(columns(family))), family.build()
    with foresight.reuse(pipe, FixedPlan(plan)) as session:
        family.run(pipe)
    assert session.generation is not None
    further = max(1, family.calls - 1)  # passes beside the CFG branches come on top
    said = session.generation.prediction_bytes * HISTORY * further
    taken = session.report().cache_bytes
    assert taken <= said, f"{taken} bytes were kept, and {said} were said to do"
    assert said <= 2 * taken, f"{taken} bytes were kept, and {said} said to be needed"


def profiles_one_generation(family: Family) -> None:
    """Gram matrices of residuals equal those of residuals kept by hand."""
    pipe, recorder = family.build(), TraceRecorder(len(columns(family)), Sketcher(SKETCH_WIDTH))
    with foresight.reuse(pipe, "none", tap=recorder):
        family.run(pipe)
    gram, _, _ = recorder.grams()
    for block in family.blocks[0], family.blocks[-1]:
        found, exact = gram[columns(family).index(block)], _exact_gram(family, block)
        np.testing.assert_allclose(found, exact, rtol=1e-3, atol=1e-4 * exact.max())


def _exact_gram(family: Family, block: str) -> np.ndarray:
    """Inner products of residuals over steps, over the mean squared norm of what comes out."""
    by_hand, gram, energy = computed_by_hand(family), np.zeros((STEPS, STEPS)), 0.0
    for branch, stream in np.ndindex(family.calls, family.streams):
        residuals, outputs = (
            torch.stack(
                [
                    step[stream].flatten().double()
                    for transformer in family.transformers
                    for step in kept[transformer, branch, block]
                ]
            )
            for kept in (by_hand.residuals, by_hand.outputs)
        )
        gram += (residuals @ residuals.T).numpy()
        energy += float(outputs.square().sum()) / STEPS
    return gram / energy


def _raise() -> None:
    raise StopHereError


def _expect_stop(family: Family, pipe: Any, **others: Any) -> None:
    try:
        family.run(pipe, seed=1, **others)
    except StopHereError:
        return
    raise AssertionError("the generation was to stop in the middle")


def _attributes(family: Family, pipe: Any) -> dict[str, Any]:
    """What a runtime might leave behind: the scheduler's class and attributes, forwards, hooks."""
    found: dict[str, Any] = {"scheduler": (type(pipe.scheduler), set(vars(pipe.scheduler)))}
    for name in family.transformers:
        for path, module in getattr(pipe, name).named_modules():
            registry = getattr(module, "_diffusers_hook", None)
            hooks = [] if registry is None else list(registry.hooks)
            # diffusers itself leaves the root's own forward in its attributes
            found[f"{name}.{path}"] = (bool(path) and "forward" in vars(module), hooks)
    return found


CHECKS: dict[str, Callable[[Family], None]] = {
    check.__name__: check
    for check in (
        is_as_described,
        finds_the_blocks,
        computing_all_is_bit_identical,
        executes_the_plan,
        matches_a_loop_by_hand,
        keeps_branches_apart,
        forgets_an_interrupted_generation,
        disable_restores_the_pipeline,
        knows_what_predictions_take,
        profiles_one_generation,
    )
}
