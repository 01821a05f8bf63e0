"""What a model's reusable blocks are: found by looking at its module lists, not in a table."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from foresight.config import UserError


@dataclasses.dataclass(frozen=True)
class Block:
    """A transformer block: dotted name, the list it lives in, and the module."""

    name: str
    kind: str
    module: nn.Module


def find_transformers(pipe: Any) -> dict[str, nn.Module]:
    """The transformers of a pipeline by component name, in their order of use.

    Two that share one denoising loop (Wan 2.2: high noise, then low noise) are both there.

    Raises:
        UserError: If there is none.
    """
    names = ("transformer", "transformer_2")
    found = {name: getattr(pipe, name, None) for name in names}
    present = {name: module for name, module in found.items() if isinstance(module, nn.Module)}
    if not present:
        raise UserError(f"{type(pipe).__name__} has no transformer: it is no diffusion transformer")
    return present


def find_blocks(transformer: nn.Module, names: Sequence[str] | None = None) -> list[Block]:
    """The repeated blocks of a transformer, in the order in which they probably run.

    They are the module lists nearest to the root whose members are alike. Lists of equal length
    on one parent are taken to alternate (spatial and temporal blocks), others to follow each other;
    the runtime establishes the true order in the first forward pass (`foresight.observing`).

    Args:
        transformer: The model.
        names: Dotted names of the blocks, where the search does not find what is wanted.

    Raises:
        UserError: If the model has no list of two or more blocks of one class, or not the names.
    """
    if names is not None:
        return _named(transformer, names)
    lists = [
        (name, module)
        for name, module in transformer.named_modules()
        if isinstance(module, nn.ModuleList) and _is_stack(module)
    ]
    if not lists:
        raise UserError(
            f"{type(transformer).__name__} has no list of two or more alike transformer blocks; "
            "name its blocks with `blocks=[...]`"
        )
    depth = min(name.count(".") for name, _ in lists)
    lists = [(name, stack) for name, stack in lists if name.count(".") == depth]
    if len({len(stack) for _, stack in lists}) == 1:
        pairs = [(name, stack, i) for i in range(len(lists[0][1])) for name, stack in lists]
    else:
        pairs = [(name, stack, i) for name, stack in lists for i in range(len(stack))]
    return [Block(f"{name}.{i}", name, stack[i]) for name, stack, i in pairs]


def _named(transformer: nn.Module, names: Sequence[str]) -> list[Block]:
    modules = dict(transformer.named_modules())
    unknown = [name for name in names if name not in modules]
    if unknown or not names:
        raise UserError(
            f"`blocks` names {', '.join(unknown) or 'nothing'}; {type(transformer).__name__} has "
            f"{', '.join(name for name, _ in transformer.named_children())}"
        )
    return [Block(name, name.rpartition(".")[0], modules[name]) for name in names]


def _is_stack(modules: nn.ModuleList) -> bool:
    alike = len({type(module) for module in modules}) == 1
    deep = len(modules) >= 2 and any(True for _ in modules[0].children())
    # By name, since quantised linears need not be subclasses.
    return alike and deep and any("Linear" in type(m).__name__ for m in modules[0].modules())


def stream_of(args: tuple, kwargs: dict) -> torch.Tensor:
    """The hidden states that a model or block was called with: so named, or the first tensor."""
    named = kwargs.get("hidden_states")
    if isinstance(named, torch.Tensor):
        return named
    return next(value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor))
