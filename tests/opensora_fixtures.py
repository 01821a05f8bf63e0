"""What the reference computed (see fixtures/opensora/README.md), and models with its weights."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import T5Config, T5EncoderModel

from foresight.models import (
    AutoencoderKLOpenSora,
    OpenSoraFlowScheduler,
    OpenSoraPipeline,
    STDiT3Transformer3DModel,
)
from foresight.models.architecture import build_tokenizer

FOLDER = Path(__file__).parent / "fixtures" / "opensora"


def facts(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / f"{name}.json").read_text("utf-8"))


def tensors(name: str) -> dict[str, torch.Tensor]:
    return load_file(FOLDER / f"{name}.safetensors")


def case(name: str, case: str) -> dict[str, torch.Tensor]:
    """The tensors of one case, by their names in it."""
    prefix = f"{case}."
    return {k.removeprefix(prefix): v for k, v in tensors(name).items() if k.startswith(prefix)}


def small_transformer() -> STDiT3Transformer3DModel:
    model = STDiT3Transformer3DModel(**facts("stdit3_A")["config"])
    model.load_state_dict(tensors("stdit3_A_weights"))
    return model.eval()


def small_vae() -> AutoencoderKLOpenSora:
    model = AutoencoderKLOpenSora(**facts("vae_A")["config"])
    model.load_state_dict(tensors("vae_A_weights"))
    return model.eval()


def small_pipeline() -> OpenSoraPipeline:
    """The reference's small models behind a random T5."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_heads": 4}
    text_encoder = T5EncoderModel(T5Config(vocab_size=len(tokenizer), dropout_rate=0.0, **sizes))
    pipe = OpenSoraPipeline(
        tokenizer, text_encoder.eval(), small_vae(), small_transformer(), OpenSoraFlowScheduler()
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe
