"""Getting between a pipeline and its transformer; all that knows how diffusers' hooks work.

A block's own forward is replaced beneath every hook that is already there, so that group
offloading has brought the weights, and context parallelism has cut the sequence, before anything
is decided; hooks that come later wrap it.
"""

from collections.abc import Callable
from typing import Any

import torch
from diffusers.hooks import HookRegistry, ModelHook
from diffusers.hooks.hooks import BaseState, StateManager
from torch import nn

from foresight.config import UserError

ROOT_HOOK = "foresight_session"
_OTHER_CACHES = (
    "faster_cache",
    "fbc_",
    "mag_cache",
    "pyramid_attention_broadcast",
    "sea_cache",
    "taylorseer_cache",
    "text_kv_cache",
)
Forward = Callable[..., Any]


class RootHook(ModelHook):
    """Stands in for a transformer's forward, and hears what `cache_context` names the branch.

    Only hooks that say they keep state are told the context.
    """

    _is_stateful = True

    def __init__(self, session: Any, run: Callable[[Forward, tuple, dict], Any]) -> None:
        super().__init__()
        self.session, self._run = session, run
        state: Any = BaseState  # diffusers' annotation says an instance and means the class
        self._context = StateManager(state)

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """What diffusers calls in the place of the transformer's forward."""
        forward: Any = self.fn_ref.original_forward
        return self._run(forward, args, kwargs)

    def reset_state(self, module: nn.Module) -> None:
        """Pipelines reset hooks when they end; a report is asked for after that."""

    @property
    def branch(self) -> str | None:
        """What the pipeline calls this forward pass ("cond", "uncond"), if it says so."""
        try:
            return self._context.context.name
        except ValueError:
            return None


def replace_forward(
    module: nn.Module, run: Callable[[Forward, tuple, dict], Any]
) -> Callable[[], None]:
    """Replace a module's forward beneath its hooks; returns what undoes it.

    Dynamo does not look into the replacement, so a compiled block stays one whole graph and what is
    decided outside of it never recompiles it.
    """
    holder, name = _places(module)[0]
    own = name in vars(holder)
    original = getattr(holder, name)

    def replacement(*args: Any, **kwargs: Any) -> Any:
        return run(original, args, kwargs)

    ours = torch.compiler.disable(replacement, recursive=False)
    setattr(holder, name, ours)

    def undo() -> None:
        for place, attribute in _places(module):
            if getattr(place, attribute, None) is ours:
                if own or place is not module:
                    setattr(place, attribute, original)
                else:
                    delattr(module, attribute)

    return undo


def _places(module: nn.Module) -> list[tuple[Any, str]]:
    """Where forwards are held, from the innermost out.

    A module compiled in place is called through its compiled form, hooks and all; else accelerate's
    hooks, then diffusers' chain, then the module's attribute.
    """
    if module._compiled_call_impl is not None:
        return [(module, "_compiled_call_impl")]
    places: list[tuple[Any, str]] = []
    if hasattr(module, "_old_forward"):
        places.append((module, "_old_forward"))
    registry = getattr(module, "_diffusers_hook", None)
    for reference in [] if registry is None else registry._fn_refs:
        replaced = reference.original_forward is not None
        places.append((reference, "original_forward" if replaced else "forward"))
    return [*places, (module, "forward")]


def root_hook(transformer: nn.Module) -> RootHook | None:
    """Our hook on a transformer, if there is one."""
    registry = getattr(transformer, "_diffusers_hook", None)
    hook = None if registry is None else registry.get_hook(ROOT_HOOK)
    return hook if isinstance(hook, RootHook) else None


def add_root_hook(transformer: nn.Module, hook: RootHook) -> None:
    """Hook a transformer, and mark it so that `enable_cache` refuses."""
    HookRegistry.check_if_exists_or_initialize(transformer).register_hook(hook, ROOT_HOOK)
    if hasattr(transformer, "is_cache_enabled"):
        vars(transformer)["_cache_config"] = _Mark()


def remove_root_hook(transformer: nn.Module) -> None:
    """Undo `add_root_hook`."""
    HookRegistry.check_if_exists_or_initialize(transformer).remove_hook(ROOT_HOOK, recurse=False)
    if isinstance(vars(transformer).get("_cache_config"), _Mark):
        del vars(transformer)["_cache_config"]


class _Mark:
    """What diffusers names when a cache is to be enabled while a foresight policy is."""


_Mark.__name__ = _Mark.__qualname__ = "foresight policy"


def refuse_other_caches(transformer: nn.Module) -> None:
    """Raise if another cache acts on the transformer.

    Raises:
        UserError: Names it; two caches would each reuse what the other made up.
    """
    config = getattr(transformer, "_cache_config", None)
    if config is not None and not isinstance(config, _Mark):
        raise UserError(
            f"another cache ({type(config).__name__}) is enabled on this transformer; "
            "call disable_cache() first"
        )
    for module in transformer.modules():
        registry = getattr(module, "_diffusers_hook", None)
        for name in [] if registry is None else registry.hooks:
            if name.startswith(_OTHER_CACHES):
                raise UserError(
                    f"another cache (hook {name}) is enabled on this transformer; remove it first"
                )


def refuse_whole_compile(transformer: nn.Module) -> None:
    """Raise if the transformer is compiled as one.

    Raises:
        UserError: A graph of the whole model has every decision baked in.
    """
    if isinstance(transformer, torch._dynamo.OptimizedModule) or transformer._compiled_call_impl:
        raise UserError(
            "the transformer is compiled as a whole, so its blocks cannot be skipped; compile "
            "them one by one: transformer.compile_repeated_blocks(fullgraph=True)"
        )
