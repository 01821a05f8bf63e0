"""The models' text encoders, by their published configurations: only their time is wanted."""

import dataclasses
import statistics
import time
from typing import Any

import torch
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    LlamaConfig,
    LlamaModel,
    T5Config,
    T5EncoderModel,
    UMT5Config,
    UMT5EncoderModel,
)

REPEATS = 3


@dataclasses.dataclass(frozen=True)
class TextEncoder:
    """A text encoder, and how a generation uses it.

    Attributes:
        model, config: Classes.
        arguments: Of the configuration.
        tokens: It is run on so many at a time.
        times: So often: where guidance needs it, for the empty prompt as well.
    """

    model: type
    config: type
    arguments: dict[str, Any]
    tokens: int = 0
    times: int = 0

    def taking(self, tokens: int, *, times: int) -> "TextEncoder":
        """The encoder with what a generation asks of it."""
        return dataclasses.replace(self, tokens=tokens, times=times)

    def build(self) -> torch.nn.Module:
        """With random weights, on torch's default device and in its default dtype."""
        return self.model(self.config(**self.arguments)).eval().requires_grad_(False)


@torch.no_grad()
def encoding_seconds(encoder: TextEncoder, module: torch.nn.Module, device: torch.device) -> float:
    """Median time of encoding one generation's texts, after a run to warm up."""
    tokens = torch.ones(1, encoder.tokens, dtype=torch.long, device=device)
    seconds = []
    for _ in range(1 + REPEATS):
        started = time.perf_counter()
        for _ in range(encoder.times):
            module(input_ids=tokens, attention_mask=torch.ones_like(tokens))
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[1:])


_XXL = {"d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64}
_TINY = {"d_model": 32, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2, "vocab_size": 64}
_GATED = {"feed_forward_proj": "gated-gelu"}
_CLIP_L: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "projection_dim": 768,
}
_LLAMA_3_8B: dict[str, Any] = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128320,
}
_SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 64,
}
_SMALL_CLIP = {**_SMALL, "projection_dim": 32, "bos_token_id": 0, "eos_token_id": 1}

T5_XXL = TextEncoder(T5EncoderModel, T5Config, {**_XXL, **_GATED, "vocab_size": 32128})
UMT5_XXL = TextEncoder(UMT5EncoderModel, UMT5Config, {**_XXL, **_GATED, "vocab_size": 256384})
# HunyuanVideo's prompt of 256 tokens follows a template of 95.
LLAMA_AND_CLIP = (
    TextEncoder(LlamaModel, LlamaConfig, _LLAMA_3_8B).taking(351, times=1),
    TextEncoder(CLIPTextModel, CLIPTextConfig, _CLIP_L).taking(77, times=1),
)
TINY_T5 = TextEncoder(T5EncoderModel, T5Config, _TINY)
TINY_UMT5 = TextEncoder(UMT5EncoderModel, UMT5Config, _TINY)
TINY_LLAMA_AND_CLIP = (
    TextEncoder(LlamaModel, LlamaConfig, _SMALL).taking(8, times=1),
    TextEncoder(CLIPTextModel, CLIPTextConfig, _SMALL_CLIP).taking(8, times=1),
)
