"""How a model's blocks run: their true order, what they take and return, from watching a forward.

The watched forward is that of a copy whose tensors live on the meta device: no data, no arithmetic.
A model that reads values while it runs cannot be watched that way; its own forward is then watched.
"""

import copy
import dataclasses
import functools
import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from foresight.blocks import Block
from foresight.config import UserError

Source = int | str
_HOOK_TABLES = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks_with_kwargs",
)
_ATTACHED = ("forward", "_diffusers_hook", "_hf_hook", "_old_forward", "_compiled_call_impl")
# Operations that mix no tokens and weigh no channels: what a model may do to a stream between two
# blocks whose residuals are added up and applied at once.
_LINEAR = {
    *("add", "sub", "cat", "split", "split_with_sizes", "select", "slice"),
    *("alias", "clone", "contiguous", "copy", "detach", "to"),
    *("expand", "permute", "squeeze", "t", "transpose", "unsafe_view", "unsqueeze", "view"),
}


@dataclasses.dataclass(frozen=True)
class Streams:
    """The tensors that a block changes.

    Attributes:
        sources: For each, the position or keyword that it is handed in by.
        form: None if the block returns one bare tensor; else, element by element of the tuple that
            it returns, whether that is one of the streams (other elements are None).
    """

    sources: tuple[Source, ...]
    form: tuple[bool, ...] | None = None

    def read(self, args: tuple, kwargs: dict) -> tuple[torch.Tensor, ...]:
        """The streams that a block is called with."""
        return tuple(args[s] if isinstance(s, int) else kwargs[s] for s in self.sources)

    def unpack(self, output: Any) -> tuple[torch.Tensor, ...]:
        """The streams that a block returned."""
        if self.form is None:
            return (output,)
        return tuple(part for part, used in zip(output, self.form, strict=True) if used)

    def pack(self, streams: tuple[torch.Tensor, ...]) -> Any:
        """Streams in the form in which the block returns them."""
        if self.form is None:
            return streams[0]
        left = iter(streams)
        return tuple(next(left) if used else None for used in self.form)


@dataclasses.dataclass(frozen=True)
class Observation:
    """Blocks in true execution order.

    Attributes:
        blocks: N.
        streams: Of each block.
        groups: Of each block; only those of equal name may share one stored residual: they live in
            one list, and between them the model does nothing to the stream but move it about.
    """

    blocks: tuple[Block, ...]
    streams: tuple[Streams, ...]
    groups: tuple[str, ...]


@dataclasses.dataclass
class _Call:
    """A block's call: what it was given, what it returned, and what came right after it.

    `is_used_on` says that the model went on to use what the block had been given.
    """

    name: str
    args: tuple
    kwargs: dict
    output: Any = None
    is_used_on: bool = False
    works_on: bool = False

    @property
    def given(self) -> dict[Source, torch.Tensor]:
        """Tensors among the arguments, by position or keyword."""
        places = (*enumerate(self.args), *self.kwargs.items())
        return {place: value for place, value in places if isinstance(value, torch.Tensor)}


class Watcher(TorchDispatchMode):
    """Notes calls of blocks, and what a model does in between."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[_Call] = []
        self._inside = True  # until the first block has run

    def run(self, name: str, forward: Callable, *args: Any, **kwargs: Any) -> Any:
        """Call a block's forward."""
        call = _Call(name, args, kwargs)
        self.calls.append(call)
        self._inside = True
        call.output = forward(*args, **kwargs)
        self._inside = False
        return call.output

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if not self._inside:
            last = self.calls[-1]
            used = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
            entered = [x for x in last.given.values() if x.is_floating_point() and x.ndim > 2]
            last.is_used_on |= any(x is y for x in used for y in entered)
            last.works_on |= func.overloadpacket.__name__.strip("_") not in _LINEAR
        return func(*args, **kwargs)


_SEEN: weakref.WeakKeyDictionary[nn.Module, dict[tuple[str, ...], Observation]] = (
    weakref.WeakKeyDictionary()
)


def observe(
    transformer: nn.Module,
    blocks: list[Block],
    args: tuple,
    kwargs: dict,
    run: Callable[[Watcher], Any],
) -> Observation:
    """Establish how blocks run; remembered for as long as the model lives.

    Args:
        transformer: The model.
        blocks: Those to look for.
        args: Positional arguments of a forward pass.
        kwargs: Its keyword arguments.
        run: Runs that forward pass for real, every block through `Watcher.run`; used if the meta
            device does not do.

    Raises:
        UserError: If a block runs more than once, or returns something that it was not given.
    """
    known = _SEEN.setdefault(transformer, {})
    key = tuple(block.name for block in blocks)
    if key not in known:
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            try:
                watcher = _watch_on_meta(transformer, key, args, kwargs)
            except Exception:  # whatever a model does that meta tensors cannot
                watcher = Watcher()
                with watcher:
                    run(watcher)
        known[key] = _conclude(transformer, blocks, watcher.calls)
    return known[key]


def _watch_on_meta(
    transformer: nn.Module, names: tuple[str, ...], args: tuple, kwargs: dict
) -> Watcher:
    """The calls of blocks in a forward pass without data."""
    twin, watcher = _meta_copy(transformer), Watcher()
    modules = dict(twin.named_modules())
    for name in names:
        modules[name].forward = functools.partial(watcher.run, name, modules[name].forward)
    args, kwargs = pytree.tree_map_only(torch.Tensor, lambda t: t.to("meta"), (args, kwargs))
    with watcher:
        twin(*args, **kwargs)
    return watcher


def _meta_copy(model: nn.Module) -> nn.Module:
    """A copy without data, hooks or replaced forwards."""
    memo: dict[int, Any] = {}
    for module in model.modules():
        for name, value in vars(module).items():
            if name in _HOOK_TABLES:
                memo[id(value)] = OrderedDict()
            elif name in _ATTACHED:
                memo[id(value)] = None
            elif isinstance(value, torch.Tensor):
                memo[id(value)] = value.to("meta")
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if isinstance(tensor, nn.Parameter):
                memo[id(tensor)] = nn.Parameter(tensor.detach().to("meta"), tensor.requires_grad)
            elif tensor is not None:
                memo[id(tensor)] = tensor.to("meta")
    twin = copy.deepcopy(model, memo)
    for module in twin.modules():
        for name in _ATTACHED:
            vars(module).pop(name, None)
    return twin


def _conclude(transformer: nn.Module, blocks: list[Block], calls: list[_Call]) -> Observation:
    by_name = {block.name: block for block in blocks}
    owner = type(transformer).__name__
    # A stack whose input the model goes on with (it adds what they return) is no part of the chain.
    aside = {by_name[call.name].kind for call in calls if call.is_used_on}
    chain = [call for call in calls if by_name[call.name].kind not in aside]
    order = [call.name for call in chain]
    if not order:
        raise UserError(
            f"{owner}: no block is given a stream and returns it changed; name those to reuse with "
            "`blocks=[...]`"
        )
    for name in order:
        if order.count(name) > 1:
            raise UserError(
                f"block {name} of {owner} ran {order.count(name)} times in one forward pass, so "
                "its result cannot be reused; name other blocks with `blocks=[...]`"
            )
    streams = [
        _streams(owner, call, after) for call, after in zip(chain, [*chain[1:], None], strict=True)
    ]
    groups, segment = [], 0
    for call, after in zip(calls, [*calls[1:], None], strict=True):
        if call in chain:
            groups.append(f"{by_name[call.name].kind}/{segment}")
        segment += call.works_on or (after is not None and after not in chain)
    return Observation(tuple(by_name[name] for name in order), tuple(streams), tuple(groups))


def _streams(owner: str, call: _Call, after: _Call | None) -> Streams:
    """Match what a block returned with what it was given.

    Where several inputs have a result's shape, the block after it tells them apart: it is handed
    the results in the places where this one was handed the inputs.
    """
    passed_on = {} if after is None else after.given
    parts = call.output if isinstance(call.output, tuple) else (call.output,)
    sources: list[Source] = []
    for part in parts:
        if part is None:
            continue
        fits = [
            place
            for place, value in call.given.items()
            if isinstance(part, torch.Tensor)
            and value.shape == part.shape
            and value.is_floating_point()
            and place not in sources
        ]
        if not fits:
            found = tuple(part.shape) if isinstance(part, torch.Tensor) else type(part).__name__
            raise UserError(
                f"block {call.name} of {owner} returns {found}, which is not the shape of anything "
                "it takes: what it adds cannot be told; name other blocks with `blocks=[...]`"
            )
        sure = [place for place in fits if passed_on.get(place) is part]
        named = [place for place in fits if place == "hidden_states"]
        sources.append((sure or named or fits)[0])
    form = tuple(part is not None for part in parts) if isinstance(call.output, tuple) else None
    return Streams(tuple(sources), form)
