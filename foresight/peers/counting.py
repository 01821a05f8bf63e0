"""What a peer really computes and holds, measured from outside."""

import functools
import types
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch

from foresight.blocks import stream_of


class CallCounter:
    """Counts the rows that units (blocks, or parts of them) compute, below a peer's own hooks.

    A peer that skips a unit does not call the innermost forward; one that drops a CFG branch from
    the batch calls it with fewer rows.

    Args:
        units: Name and module of each.
    """

    def __init__(self, units: list[tuple[str, torch.nn.Module]]) -> None:
        self.names = [name for name, _ in units]
        self._modules = [module for _, module in units]
        self._rows: list[list[int]] = []

    def attach(self) -> None:
        """Wrap the units' forwards."""
        for index, module in enumerate(self._modules):
            module.forward = self._counted(index, module.forward)

    def begin(self) -> None:
        """A generation starts."""
        self._rows = []

    def next_step(self) -> None:
        """A step starts."""
        self._rows.append([0] * len(self.names))

    def shares(self) -> np.ndarray:
        """(S, N) rows computed, relative to the first step, which computes everything."""
        rows = np.asarray(self._rows, float).reshape(-1, len(self.names))
        return rows / rows[:1].clip(min=1)

    def _counted(self, index: int, forward: Callable) -> Callable:
        @functools.wraps(forward)
        def counted(*args: Any, **kwargs: Any) -> Any:
            self._rows[-1][index] += stream_of(args, kwargs).shape[0]
            return forward(*args, **kwargs)

        return counted


class Restorer:
    """Remembers what hangs on a model's modules, and undoes what peers leave behind.

    diffusers leaves registries and forwards; cache-dit leaves statistics, and moves the block lists
    to the end of their parent.
    """

    REPLACED = ("forward", "_cache_config")

    def __init__(self, model: torch.nn.Module) -> None:
        self._held = [
            (module, set(vars(module)), self._replaced(module), dict(module._modules))
            for module in model.modules()
        ]

    def restore(self) -> None:
        """What is new is gone, what was replaced is the object that it was."""
        for module, names, replaced, children in self._held:
            for name in set(vars(module)) - names:
                delattr(module, name)
            for name, value in replaced.items():
                setattr(module, name, value)
            if list(module._modules) != list(children):
                module._modules.clear()
                module._modules.update(children)

    def _replaced(self, module: torch.nn.Module) -> dict[str, Any]:
        return {name: vars(module)[name] for name in self.REPLACED if name in vars(module)}


def held_bytes(holders: Iterable[Any]) -> int:
    """Bytes of the distinct tensor storages reachable from objects, but not through modules."""
    storages: dict[int, int] = {}
    seen: set[int] = set()
    waiting = list(holders)
    plain = (str, bytes, int, float, type, types.ModuleType, types.FunctionType, torch.nn.Module)
    while waiting:
        item = waiting.pop()
        if item is None or isinstance(item, plain) or id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, torch.Tensor):
            storage = item.untyped_storage()
            storages[storage._cdata] = storage.nbytes()
        elif isinstance(item, dict):
            waiting += item.values()
        elif isinstance(item, list | tuple | set):
            waiting += item
        elif hasattr(item, "__dict__"):
            waiting += vars(item).values()
    return sum(storages.values())
