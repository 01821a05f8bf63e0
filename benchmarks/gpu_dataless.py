"""Pipelines of any size without data, and a ledger of what they hold and read.

The transformer lives on torch's meta device, which knows shapes and computes nothing; the pipeline,
its noise scheduler and its latents are real, on the CPU. So generations run through the same code
as on a GPU, in moments and without weights, and what does not depend on numbers can be counted.
"""

import contextlib
import functools
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

CPU, META = torch.device("cpu"), torch.device("meta")


class Ledger(TorchDispatchMode):
    """Counts what is done inside.

    Args:
        number: What every number is that the host asks of the meta device.

    Attributes:
        held: Bytes of the tensors that were made inside and are still there.
        peak: The most that was held.
        reads: How often the host would have waited for the device: for a number, or for a copy that
            is not made in passing.
        operations: Floating-point ones, of matrix products, convolutions and attention.
    """

    def __init__(self, number: float) -> None:
        super().__init__()
        self._number = number
        self.held = self.peak = self.reads = self.operations = 0
        self._storages: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        packet = func.overloadpacket
        if args and isinstance(args[0], torch.Tensor) and args[0].is_meta:
            if packet is torch.ops.aten._local_scalar_dense:
                self.reads += 1
                return torch.tensor(self._number, dtype=args[0].dtype).item()
            if packet is torch.ops.aten._to_copy and kwargs.get("device") == CPU:
                self.reads += not kwargs.get("non_blocking", False)
                kind = kwargs.get("dtype") or args[0].dtype
                return torch.full(args[0].shape, self._number, dtype=kind)
        result = func(*args, **kwargs)
        if packet in flop_registry:
            self.operations += flop_registry[packet](*args, **kwargs, out_val=result)
        for tensor in pytree.tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._enter(tensor.untyped_storage())
        return result

    def _enter(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._storages:
            return

        def leave(_: Any) -> None:
            self.held -= size
            del self._storages[key]

        self._storages[key] = weakref.ref(storage, leave)
        self.held += size
        self.peak = max(self.peak, self.held)


class _FusedAttention(TorchFunctionMode):
    """Attention as the one operation that it is on a GPU.

    On the meta device torch would take it apart, and hold scores that no fused kernel does.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if func is torch.nn.functional.scaled_dot_product_attention:
            return _attend(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **__: Any) -> Any:
    return torch.ops.aten._scaled_dot_product_flash_attention(query, key, value)[0]


@contextlib.contextmanager
def counted(number: float = 0.0) -> Iterator[Ledger]:
    """A ledger of what is done inside; see there."""
    with torch.no_grad(), _FusedAttention(), Ledger(number) as ledger:
        yield ledger


def run_without_data(pipe: Any) -> None:
    """Let a pipeline run whose transformer is on the meta device, as if it were on the CPU."""
    here = property(lambda _: CPU)
    transformer = pipe.transformer
    _replace(transformer, device=here, forward=_across(type(transformer).forward))
    _replace(pipe, device=here, _execution_device=here)


def _replace(thing: Any, **attributes: Any) -> None:
    """Give an object attributes by a subclass of its own class, of the same name."""
    kind = type(thing)
    named = {"__module__": kind.__module__, "__qualname__": kind.__qualname__}
    thing.__class__ = type(kind.__name__, (kind,), {**named, **attributes})


def _across(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A forward pass on the meta device, from and to tensors on the CPU."""

    def enter(tensor: torch.Tensor) -> torch.Tensor:
        return torch.empty_like(tensor, device=META)

    def leave(tensor: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(tensor, device=CPU)

    @functools.wraps(forward)
    def across(self: Any, *args: Any, **kwargs: Any) -> Any:
        args, kwargs = pytree.tree_map_only(torch.Tensor, enter, (args, kwargs))
        return pytree.tree_map_only(torch.Tensor, leave, forward(self, *args, **kwargs))

    return across
