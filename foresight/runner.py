"""The hot path: what one CFG branch of one transformer computes, reuses and keeps.

A planned branch takes a table look-up per block, then computes, adds a residual, or does nothing.
No scalar is read from the device and no branch depends on data.
"""

import abc
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from foresight.blocks import Block, stream_of
from foresight.hooks import Forward
from foresight.observing import Observation, Streams, Watcher, observe
from foresight.output_plan import OutputStep, compile_output_plan
from foresight.plan import COMPUTE, REUSE, Operation, Plan, Row, compile_plan
from foresight.policies.base import Controller

MODEL = -1
Tensors = tuple[torch.Tensor, ...]
Tap = Callable[[int, int, int, Tensors, Tensors], None]


class Program:
    """A plan compiled from a step on, for a branch that has nothing cached there."""

    def __init__(self, plan: Plan, groups: Sequence[str], start: int) -> None:
        rest, self.start = plan.restarted(start), start
        self.rows: list[Row] = [[None] * len(groups)] * rest.shape[0]
        self.model: list[OutputStep | None] = [None] * rest.shape[0]
        if rest.at_output:
            self.model[:] = compile_output_plan(rest)
        else:
            self.rows = compile_plan(rest, groups)


class Branch(abc.ABC):
    """One CFG branch of one transformer, over one generation.

    Args:
        streams: Of each block.
        index: Tells branches apart, to taps and controllers.
        tap: Called as `tap(step, index, block, streams, outputs)` with what every computed block
            took and returned, and with block = `MODEL` for the model.
    """

    def __init__(self, streams: tuple[Streams, ...], index: int, tap: Tap | None) -> None:
        self.streams, self.index, self._tap = streams, index, tap
        self.latest: dict[int, Tensors] = {}
        self.previous: dict[int, Tensors] = {}
        self.predictions: list[Tensors] = []  # of the model, the latest first

    def begin(self, step: int, executed: bytearray) -> None:
        """A forward pass begins; `executed` (N,) is where actions are noted."""
        self.step, self.executed = step, executed

    def model(self, forward: Callable, args: tuple, kwargs: dict) -> Any:
        """Run the whole model, or stand in for it."""
        output = forward(*args, **kwargs)
        if self._tap is not None:
            latents = (stream_of(args, kwargs),)
            self._tap(self.step, self.index, MODEL, latents, tensors_of(output))
        return output

    @abc.abstractmethod
    def block(self, index: int, forward: Callable, args: tuple, kwargs: dict) -> Any:
        """Run a block, or stand in for it."""

    def num_bytes(self) -> int:
        """Bytes kept."""
        kept = (*self.latest.values(), *self.previous.values(), *self.predictions)
        return sum(tensor.nbytes for tensors in kept for tensor in tensors)

    def _compute(
        self, index: int, forward: Callable, args: tuple, kwargs: dict
    ) -> tuple[Any, Tensors, Tensors]:
        """What a block returns, and its streams before and after."""
        streams = self.streams[index]
        before = streams.read(args, kwargs)
        output = forward(*args, **kwargs)
        after = streams.unpack(output)
        if self._tap is not None:
            self._tap(self.step, self.index, index, before, after)
        return output, before, after


class PlannedBranch(Branch):
    """Carries out a program.

    Args:
        streams, index, tap: See `Branch`.
        program: The plan.
        variance: Whether the scheduler reads a variance behind the prediction, if the model gives
            one. If not, the pipeline cuts it off, and none is kept.
    """

    def __init__(
        self,
        streams: tuple[Streams, ...],
        index: int,
        tap: Tap | None,
        program: Program,
        *,
        variance: bool,
    ) -> None:
        super().__init__(streams, index, tap)
        self._program, self._variance = program, variance
        self._rebuild: Callable[[Tensors], Any] = tuple

    def begin(self, step: int, executed: bytearray) -> None:
        """Look up the operations of this step."""
        super().begin(step, executed)
        self._row = self._program.rows[step - self._program.start]
        self._whole = self._program.model[step - self._program.start]

    def model(self, forward: Callable, args: tuple, kwargs: dict) -> Any:
        """Run the whole model, or stand in for it, as planned."""
        whole = self._whole
        if whole is None:
            return super().model(forward, args, kwargs)
        if whole.action != COMPUTE:
            self.executed[:] = bytes([whole.action]) * len(self.executed)
            value = _combine(whole, self.predictions)
            del self.predictions[whole.keep :]
            return self._rebuild(value)
        output = super().model(forward, args, kwargs)
        full = tensors_of(output)
        latents = stream_of(args, kwargs)
        told = full if self._variance else tuple(_without_variance(each, latents) for each in full)
        self._rebuild = rebuilder(output, told)
        seen = [told, *self.predictions]
        # Copies, in and out, for pipelines that change a prediction in place.
        kept = [tuple(part.clone() for part in seen[0])] if whole.keep else []
        self.predictions = [*kept, *self.predictions][: whole.keep]
        if whole.plain:
            return output
        return self._rebuild(_combine(whole, seen))

    def block(self, index: int, forward: Callable, args: tuple, kwargs: dict) -> Any:
        """Run a block, or stand in for it, as planned."""
        operation = self._row[index]
        if operation is None:
            return self._compute(index, forward, args, kwargs)[0]
        if operation.action == COMPUTE:
            output, before, after = self._compute(index, forward, args, kwargs)
            if operation.first:
                self._store(operation, tuple(a - b for a, b in zip(after, before, strict=True)))
            else:
                slot = self.latest[operation.slot]
                for kept, a, b in zip(slot, after, before, strict=True):
                    kept.add_(a).sub_(b)
            return output
        self.executed[index] = operation.action
        streams = self.streams[index]
        before = streams.read(args, kwargs)
        if not operation.last:
            return streams.pack(before)
        value = self.latest[operation.slot]
        if operation.action == REUSE:
            after = tuple(b + r for b, r in zip(before, value, strict=True))
        else:
            beta, older = operation.coefficient, self.previous[operation.slot]
            after = tuple(
                torch.add(b, r, alpha=1 + beta).add_(p, alpha=-beta)
                for b, r, p in zip(before, value, older, strict=True)
            )
        self._drop(operation)
        return streams.pack(after)

    def _store(self, operation: Operation, value: Tensors) -> None:
        slot = operation.slot
        if operation.shift:
            self.previous[slot] = self.latest[slot]
        else:
            self.previous.pop(slot, None)
        self.latest[slot] = value

    def _drop(self, operation: Operation) -> None:
        if operation.drops_previous:
            self.previous.pop(operation.slot, None)
        if operation.drops_latest:
            del self.latest[operation.slot]


class ReactiveBranch(Branch):
    """Asks a controller, block by block; what was never computed is computed."""

    def __init__(
        self, streams: tuple[Streams, ...], index: int, tap: Tap | None, controller: Controller
    ) -> None:
        super().__init__(streams, index, tap)
        self._controller = controller
        self._keeps_output = controller.cached == "output"

    def block(self, index: int, forward: Callable, args: tuple, kwargs: dict) -> Any:
        """Run a block, or stand in for it, as the controller says."""
        kept = self.latest.get(index)
        if kept is not None and self._controller.reuses(self.step, self.index, index):
            self.executed[index] = REUSE
            streams = self.streams[index]
            if self._keeps_output:
                return streams.pack(kept)
            before = streams.read(args, kwargs)
            return streams.pack(tuple(b + r for b, r in zip(before, kept, strict=True)))
        output, before, after = self._compute(index, forward, args, kwargs)
        fresh = after
        if not self._keeps_output:
            fresh = tuple(a - b for a, b in zip(after, before, strict=True))
        last = None if kept is None else kept[0]
        self._controller.observe(self.step, self.index, index, fresh[0], last)
        self.latest[index] = fresh
        return output


class Model:
    """A transformer of the pipeline, its blocks, and what is kept of it in this generation.

    `positions[i]` is where the i-th block that was found comes in execution order; None if it never
    runs.
    """

    def __init__(self, module: nn.Module, blocks: list[Block]) -> None:
        self.module, self.blocks = module, blocks
        self.observed: Observation | None = None
        self.positions: list[int | None] = []
        self.branches: dict[str | int, Branch] = {}
        self.programs: dict[int, Program] = {}
        self.undo: list[Callable[[], None]] = []
        self.watcher: Watcher | None = None

    def learn_order(self, forward: Forward, args: tuple, kwargs: dict) -> Observation:
        """Establish how the blocks run, before the first forward pass."""

        def run(watcher: Watcher) -> None:
            self.watcher = watcher
            try:
                forward(*args, **kwargs)
            finally:
                self.watcher = None

        if self.observed is None:
            self.observed = observe(self.module, self.blocks, args, kwargs, run)
            order = {block.name: place for place, block in enumerate(self.observed.blocks)}
            self.positions = [order.get(block.name) for block in self.blocks]
        return self.observed

    def program(self, plan: Plan, step: int) -> Program:
        """A plan compiled for branches that begin at a step; made once a generation."""
        if step not in self.programs:
            assert self.observed is not None
            self.programs[step] = Program(plan, self.observed.groups, step)
        return self.programs[step]


def _combine(step: OutputStep, predictions: list[Tensors]) -> Tensors:
    """The weighted sum of predictions, part by part."""
    parts = zip(*predictions[: len(step.weights)], strict=True)
    return tuple(_weighted(step.weights, part) for part in parts)


def _weighted(weights: tuple[float, ...], tensors: Tensors) -> torch.Tensor:
    total = tensors[0] * weights[0]
    for weight, tensor in zip(weights[1:], tensors[1:], strict=True):
        total.add_(tensor, alpha=weight)
    return total


def tensors_of(output: Any) -> Tensors:
    """The predictions in what a transformer returned: a tensor, a tuple, or an output class."""
    if isinstance(output, torch.Tensor):
        return (output,)
    parts = output if isinstance(output, tuple) else output.values()
    return tuple(part for part in parts if isinstance(part, torch.Tensor))


def _without_variance(prediction: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
    """The channels that are of the latents, (B, C, ...), of twice as many."""
    channels = latents.shape[1]
    doubled = (latents.shape[0], 2 * channels, *latents.shape[2:])
    return prediction[:, :channels] if prediction.shape == doubled else prediction


def rebuilder(output: Any, told: Tensors) -> Callable[[Tensors], Any]:
    """A function to the form of this output, from tensors like `told`; it holds none of them."""
    cut = [full.shape != part.shape for full, part in zip(tensors_of(output), told, strict=True)]
    form = _former(output)

    def whole(part: torch.Tensor, half: bool) -> torch.Tensor:
        return torch.cat([part, torch.zeros_like(part)], dim=1) if half else part

    return lambda value: form(tuple(map(whole, value, cut))) if any(cut) else form(value)


def _former(output: Any) -> Callable[[Tensors], Any]:
    """A function from as many tensors to the form of this output."""
    if isinstance(output, torch.Tensor):
        return lambda value: value[0]
    if isinstance(output, tuple):
        used = [isinstance(part, torch.Tensor) for part in output]

        def fill(value: Tensors) -> tuple:
            left = iter(value)
            return tuple(next(left) if is_used else None for is_used in used)

        return fill
    kind = type(output)
    names = [name for name, part in output.items() if isinstance(part, torch.Tensor)]
    return lambda value: kind(**dict(zip(names, value, strict=True)))
