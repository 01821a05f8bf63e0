"""A family's pipeline under a plan, written out by hand: what the runtime is compared with.

Nothing is fused, dropped or shared: every block keeps all of its residuals, stream by stream, for
every transformer and guidance branch.
"""

import contextlib
import inspect
from collections import defaultdict
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import torch

from foresight.plan import COMPUTE, HISTORY, REUSE, Plan

from .family import Family

Streams = tuple[torch.Tensor, ...]
OUTPUT = "output"


class ByHand:
    """Replaces the forwards of a fresh pipeline's transformers and blocks.

    Args:
        family: What is known of the pipeline.
        plan: (S, N).
        columns: N names of blocks.
        mixed_up: Let guidance branches share what is stored, as a faulty runtime would.

    Attributes:
        residuals: By (transformer, branch, block): the streams of every computed step.
        outputs: The same of what a block returned.
        computed: (step, branch, block) of every computed block call.
    """

    def __init__(
        self, family: Family, plan: Plan, columns: tuple[str, ...], *, mixed_up: bool = False
    ) -> None:
        self.family, self.plan, self.columns, self.mixed_up = family, plan, columns, mixed_up
        self.step = self.branch = self.passes = 0
        self.residuals: dict[tuple[str, int, str], list[Streams]] = defaultdict(list)
        self.outputs: dict[tuple[str, int, str], list[Streams]] = defaultdict(list)
        self.computed: list[tuple[int, int, str]] = []

    def run(self, *, seed: int = 0) -> torch.Tensor:
        """Final latents of a fresh pipeline."""
        pipe = self.family.build()
        for name in self.family.transformers:
            transformer = getattr(pipe, name)
            blocks = {block: transformer.get_submodule(block) for block in self.columns}
            for block, module in blocks.items():
                module.forward = self._block(name, block, module.forward)
            transformer.forward = self._model(name, transformer.forward)
        return self.family.run(pipe, seed=seed)

    def _model(self, transformer: str, forward: Callable) -> Callable:
        def by_hand(*args: Any, **kwargs: Any) -> Any:
            self.step, self.branch = divmod(self.passes, self.family.calls)
            self.passes += 1
            if not self.plan.at_output:
                return forward(*args, **kwargs)
            output = self._weigh(transformer, lambda: forward(*args, **kwargs))
            # Kandinsky 5 asks for an output object, the others for a tuple
            return SimpleNamespace(sample=_parts(output)[0]) if kwargs["return_dict"] else output

        return by_hand

    def _block(self, transformer: str, block: str, forward: Callable) -> Callable:
        signature, column = inspect.signature(forward), self.columns.index(block)
        text = block in self.family.text_blocks
        sources = tuple(signature.parameters)[:1] if text else self.family.returns

        def by_hand(*args: Any, **kwargs: Any) -> Any:
            def compute() -> Any:
                self.computed.append((self.step, self.branch, block))
                return forward(*args, **kwargs)

            if self.plan.at_output:
                return compute()
            given = signature.bind(*args, **kwargs).arguments
            streams = tuple(given[source] for source in sources)
            return self._act(transformer, block, column, streams, compute)

        return by_hand

    def _weigh(self, transformer: str, compute: Callable[[], Any]) -> Streams:
        """Compute and store if need be; then weigh what is stored."""
        kept = self.residuals[transformer, self.branch, OUTPUT]
        weights = self.plan.weights[self.step].tolist()
        planned = self.plan.actions[self.step, 0] == COMPUTE
        # the second of two transformers has nothing stored when its turn comes
        begins = not planned and not kept
        if planned or begins:
            kept.append(_parts(compute()))
        if begins or any(weights[len(kept) :]):
            weights = [1.0, 0.0, 0.0]
        sums = []
        for parts in zip(*reversed(kept[-HISTORY:]), strict=True):
            pairs = zip(weights, parts, strict=False)
            sums.append(sum(weight * part for weight, part in pairs))
        return tuple(sums)

    def _act(
        self, transformer: str, name: str, column: int, streams: Streams, compute: Callable[[], Any]
    ) -> Any:
        """Compute and store, or add what was stored to the streams."""
        mixed_up = self.mixed_up and name not in self.family.text_blocks
        key = transformer, 0 if mixed_up else self.branch, name
        kept, action = self.residuals[key], self.plan.actions[self.step, column]
        # the second of two transformers has nothing stored when its turn comes
        if action == COMPUTE or not kept:
            output = compute()
            parts = _parts(output)
            kept.append(tuple(part - was for part, was in zip(parts, streams, strict=True)))
            self.outputs[key].append(parts)
            return output
        latest, beta = kept[-1], float(self.plan.coefficients[self.step, column])
        if action == REUSE or len(kept) < 2:
            stored = latest
        else:
            pairs = zip(latest, kept[-2], strict=True)
            stored = tuple(a + beta * (a - p) for a, p in pairs)
        if mixed_up:
            stored = tuple(_same_for_all(s, to) for s, to in zip(stored, streams, strict=True))
        result = tuple(to + s for to, s in zip(streams, stored, strict=True))
        return result[0] if len(result) == 1 else result


def _parts(output: Any) -> Streams:
    if isinstance(output, torch.Tensor):
        return (output,)
    return tuple(output.values() if hasattr(output, "values") else output)


def _same_for_all(stored: torch.Tensor, stream: torch.Tensor) -> torch.Tensor:
    """One branch's rows, for every branch of a batch."""
    rows = stored[len(stored) // 2 :] if len(stored) % 2 == 0 else stored
    return rows.repeat(len(stream) // len(rows), *[1] * (rows.ndim - 1))


@contextlib.contextmanager
def counted(family: Family, pipe: Any, columns: tuple[str, ...]) -> Iterator[list]:
    """Notes (step, branch, block) of every call that reaches a block's own forward."""
    calls: list[tuple[int, int, str]] = []
    passes, handles, originals = -1, [], []

    def begin(*_: Any) -> None:
        nonlocal passes
        passes += 1

    def spy(block: str, forward: Callable) -> Callable:
        def noted(*args: Any, **kwargs: Any) -> Any:
            calls.append((*divmod(passes, family.calls), block))
            return forward(*args, **kwargs)

        return noted

    for name in family.transformers:
        transformer = getattr(pipe, name)
        handles.append(transformer.register_forward_pre_hook(begin))
        for block in columns:
            module = transformer.get_submodule(block)
            originals.append(module)
            module.forward = spy(block, module.forward)
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()
        for module in originals:
            del module.forward
