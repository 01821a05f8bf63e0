"""Whether diffusers does what the families say of it; nothing here knows the runtime."""

import functools
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from diffusers.models.cache_utils import CacheMixin

from .family import STEPS, Family


def is_as_described(family: Family) -> None:
    """Order of blocks, what they return, passes and solver steps per step, `cache_context`."""
    pipe = family.build()
    with _observed(family, pipe) as seen:
        latents = family.run(pipe)
    assert latents.isfinite().all()
    assert torch.equal(family.run(family.build()), latents), "it is not deterministic"
    assert seen["blocks"] == list(family.text_blocks + family.blocks) * family.calls * STEPS
    assert seen["streams"] == {family.returns}
    assert seen["solver steps"] == family.scheduler_steps * STEPS
    assert bool(seen["contexts"]) == family.cache_context
    names = family.calls if family.branches == "apart" else 1
    assert seen["contexts"] in (0, names), "passes of one step go by one name"
    takes_callback = "callback_on_step_end" in inspect.signature(type(pipe).__call__).parameters
    assert takes_callback == family.has_callback
    assert seen["transformers"] == list(family.transformers)


@contextmanager
def _observed(family: Family, pipe: Any) -> Iterator[dict[str, Any]]:
    blocks: list[str] = []
    streams: set[tuple[str, ...]] = set()
    contexts: set[str] = set()
    order: dict[str, None] = {}
    solver_steps = 0

    def note(name: str, transformer: str, module: Any, args: tuple, kwargs: dict, out: Any) -> None:
        blocks.append(name)
        order[transformer] = None
        if name in family.blocks:
            streams.add(_changed(module, args, kwargs, out, family.returns))

    kind = type(pipe.scheduler)
    original_step, original_context = kind.step, CacheMixin.cache_context

    @functools.wraps(original_step)
    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal solver_steps
        solver_steps += self is pipe.scheduler
        return original_step(self, *args, **kwargs)

    def context(self: Any, name: str, *args: Any, **kwargs: Any) -> Any:
        contexts.add(name)
        return original_context(self, name, *args, **kwargs)

    for transformer in family.transformers:
        for name in family.text_blocks + family.blocks:
            module = getattr(pipe, transformer).get_submodule(name)
            hook = functools.partial(note, name, transformer)
            module.register_forward_hook(hook, with_kwargs=True)
    seen: dict[str, Any] = {"blocks": blocks, "streams": streams}
    with patch.object(kind, "step", step), patch.object(CacheMixin, "cache_context", context):
        yield seen
    seen["contexts"], seen["solver steps"] = len(contexts), solver_steps
    seen["transformers"] = list(order)


def _changed(
    module: Any, args: tuple, kwargs: dict, output: Any, returns: tuple[str, ...]
) -> tuple[str, ...]:
    """The names of the streams, where what is returned has the shape of what was taken."""
    given = inspect.signature(type(module).forward).bind(module, *args, **kwargs).arguments
    parts = output if isinstance(output, tuple) else (output,)
    fitting = zip(returns, parts, strict=True)
    return tuple(name for name, part in fitting if part.shape == given[name].shape)
