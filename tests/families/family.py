"""What is known of a family of pipelines, by reading diffusers, and tiny parts they share."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import torch
from transformers import T5Config, T5EncoderModel, T5Tokenizer, UMT5Config, UMT5EncoderModel

from foresight.models.architecture import build_tokenizer

STEPS = 6
TEXT_WIDTH = 32
TEXT_TOKENS = 8
_T5_SIZES: dict[str, Any] = {
    "d_model": TEXT_WIDTH,
    "d_kv": 8,
    "d_ff": 32,
    "num_layers": 1,
    "num_heads": 2,
}
PROMPT = "a red circle moves left"


@dataclasses.dataclass(frozen=True, eq=False)
class Family:
    """A tiny pipeline of random weights, and facts about it that were read off diffusers' code.

    Attributes:
        name: Name of the family.
        build: Makes the pipeline; the same weights every time.
        call: Keyword arguments of a call, all but the generator.
        blocks: Dotted names of the repeated blocks that carry the video, in execution order, the
            same in every transformer of the pipeline.
        returns: The streams that a block returns, in this order, by the names of its arguments. One
            name: the block returns a tensor; two: a tuple.
        branches: "fused" when guidance is evaluated in one batch, "apart" when in several calls.
        calls: Forward passes of the transformer in one step.
        cache_context: Whether the pipeline enters diffusers' `cache_context` around them.
        text_blocks: Repeated blocks that carry text alone, before `blocks`.
        scheduler_steps: Calls of `scheduler.step` in one step of the loop.
        has_callback: Whether the pipeline takes `callback_on_step_end`.
        transformers: Names of the pipeline's transformers.
    """

    name: str
    build: Callable[[], Any]
    call: dict[str, Any]
    blocks: tuple[str, ...]
    returns: tuple[str, ...] = ("hidden_states",)
    branches: Literal["fused", "apart"] = "fused"
    calls: int = 1
    cache_context: bool = False
    text_blocks: tuple[str, ...] = ()
    scheduler_steps: int = 1
    has_callback: bool = True
    transformers: tuple[str, ...] = ("transformer",)

    @property
    def streams(self) -> int:
        """Tensors that a block returns."""
        return len(self.returns)

    @torch.no_grad()
    def run(self, pipe: Any, *, seed: int = 0, **others: Any) -> torch.Tensor:
        """Final latents of one call, as one row; those of video and sound where there are both."""
        generator = torch.Generator("cpu").manual_seed(seed)
        output = pipe(**self.call, generator=generator, **others)
        return torch.cat([part.flatten() for part in output.values()])


def names(stack: str, count: int) -> tuple[str, ...]:
    """Dotted names of the blocks of one module list."""
    return tuple(f"{stack}.{index}" for index in range(count))


def embedding(seed: int, *shape: int) -> torch.Tensor:
    """What a text encoder that would be too heavy here might have returned."""
    return torch.randn(*shape, generator=torch.Generator("cpu").manual_seed(seed))


def t5() -> tuple[T5Tokenizer, T5EncoderModel]:
    """A word-level tokenizer and a T5 encoder of random weights."""
    tokenizer = build_tokenizer()
    tokenizer.model_max_length = TEXT_TOKENS
    return tokenizer, T5EncoderModel(T5Config(vocab_size=len(tokenizer), **_T5_SIZES)).eval()


def umt5() -> tuple[T5Tokenizer, UMT5EncoderModel]:
    """The same with a UMT5 encoder."""
    tokenizer = build_tokenizer()
    return tokenizer, UMT5EncoderModel(UMT5Config(vocab_size=len(tokenizer), **_T5_SIZES)).eval()


def seeded(build: Callable[[], Any]) -> Callable[[], Any]:
    """Make a builder give the same weights every time, leave no trace in the global generator."""

    def build_seeded() -> Any:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            pipe = build()
        pipe.set_progress_bar_config(disable=True)
        return pipe

    return build_seeded
