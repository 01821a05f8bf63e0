"""What a model's reusable blocks are: found by looking at its module lists, not in a table."""

import dataclasses

import torch
from torch import nn

from foresight.config import UserError


@dataclasses.dataclass(frozen=True)
class Block:
    """A transformer block: its place in execution order, dotted name, the list it lives in."""

    index: int
    name: str
    kind: str
    module: nn.Module


def find_blocks(transformer: nn.Module) -> list[Block]:
    """The repeated blocks of a transformer, in the order in which they should run.

    Module lists of equal length that hang on the same parent are taken to alternate (spatial and
    temporal blocks); others to follow each other. The runtime checks the order in the first forward
    pass that it sees and refuses to go on if it differs.

    Raises:
        UserError: If the model has no list of two or more blocks of one class.
    """
    lists: list[tuple[str, nn.ModuleList]] = []
    for name, module in transformer.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer, _ in lists)
        if isinstance(module, nn.ModuleList) and not inside and _is_stack(module):
            lists.append((name, module))
    if not lists:
        raise UserError(f"{type(transformer).__name__} has no list of transformer blocks to reuse")
    if len({len(stack) for _, stack in lists}) == 1:
        pairs = [
            (f"{name}.{i}", name, stack[i])
            for i in range(len(lists[0][1]))
            for name, stack in lists
        ]
    else:
        pairs = [
            (f"{name}.{i}", name, module) for name, stack in lists for i, module in enumerate(stack)
        ]
    return [Block(index, name, kind, module) for index, (name, kind, module) in enumerate(pairs)]


def _is_stack(modules: nn.ModuleList) -> bool:
    alike = len({type(module) for module in modules}) == 1
    deep = len(modules) >= 2 and any(True for _ in modules[0].children())
    return alike and deep and any(isinstance(m, nn.Linear) for m in modules[0].modules())


def stream_of(args: tuple, kwargs: dict) -> torch.Tensor:
    """The hidden states that a block was called with."""
    return args[0] if args else kwargs["hidden_states"]
