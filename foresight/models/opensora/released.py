"""From the folders that Open-Sora 1.2 was released as to a pipeline that can be saved as one."""

import json
from pathlib import Path

import torch
from diffusers import ModelMixin
from safetensors.torch import load_file
from transformers import T5EncoderModel, T5Tokenizer

from foresight.config import UserError
from foresight.models.opensora.pipeline import OpenSoraPipeline
from foresight.models.opensora.scheduler import OpenSoraFlowScheduler
from foresight.models.opensora.transformer import STDiT3Transformer3DModel
from foresight.models.opensora.vae import AutoencoderKLOpenSora


def load_released(
    transformer: str | Path,
    vae: str | Path,
    text_encoder: str | Path,
    tokenizer: str | Path | None = None,
    *,
    dtype: torch.dtype = torch.bfloat16,
) -> OpenSoraPipeline:
    """Put the release's parts together; `save_pretrained` then writes an ordinary pipeline folder.

    Args:
        transformer: Folder of `hpcai-tech/OpenSora-STDiT-v3`: config.json and safetensors.
        vae: Folder of `hpcai-tech/OpenSora-VAE-v1.2`: safetensors; its config is not looked at, for
            it names other classes.
        text_encoder: Folder of a T5 v1.1 XXL encoder as safetensors.
        tokenizer: Folder of its tokenizer; the text encoder's by default.
        dtype: Of transformer and VAE; the text encoder stays in float32, as in the release.

    Raises:
        UserError: If a folder lacks a file, or weights do not fit.
    """
    try:
        config = json.loads((Path(transformer) / "config.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {transformer}/config.json: {error}") from error
    known, _, _ = STDiT3Transformer3DModel.extract_init_dict(config)
    with torch.device("meta"):
        denoiser, autoencoder = STDiT3Transformer3DModel(**known), AutoencoderKLOpenSora()
    return OpenSoraPipeline(
        tokenizer=T5Tokenizer.from_pretrained(tokenizer or text_encoder),
        text_encoder=T5EncoderModel.from_pretrained(
            text_encoder, use_safetensors=True, dtype=torch.float32
        ),
        vae=_fill(autoencoder, vae, dtype),
        transformer=_fill(denoiser, transformer, dtype),
        scheduler=OpenSoraFlowScheduler(),
    )


def _fill(model: ModelMixin, folder: str | Path, dtype: torch.dtype) -> ModelMixin:
    """Give a model on the meta device all the safetensors of a folder as its weights."""
    files = sorted(Path(folder).glob("*.safetensors"))
    if not files:
        raise UserError(f"{folder} holds no safetensors; download or convert the weights to some")
    weights = {key: value for file in files for key, value in load_file(file).items()}
    try:
        model.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        raise UserError(f"the weights in {folder} do not fit: {error}") from error
    return model.to(dtype).eval()
