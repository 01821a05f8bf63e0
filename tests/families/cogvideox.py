"""CogVideoX and ConsisID: video and text streams, guidance in one batch."""

# diffusers annotates its constructors with their defaults' types
# pyright: reportArgumentType=false

from typing import Any

import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    CogVideoXDDIMScheduler,
    CogVideoXDPMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    ConsisIDTransformer3DModel,
)
from diffusers.pipelines.consisid.pipeline_consisid import (
    ConsisIDPipeline,  # diffusers exports it only beside OpenCV, which face key points need
)
from PIL import Image

from .family import PROMPT, STEPS, TEXT_TOKENS, TEXT_WIDTH, Family, embedding, names, seeded, t5

_CALL = {
    "prompt": PROMPT,
    "height": 16,
    "width": 16,
    "num_frames": 5,
    "num_inference_steps": STEPS,
    "guidance_scale": 4.0,
    "max_sequence_length": TEXT_TOKENS,
    "output_type": "latent",
}
_SIZES: dict[str, Any] = {
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "out_channels": 4,
    "time_embed_dim": 8,
    "text_embed_dim": TEXT_WIDTH,
    "num_layers": 3,
    "sample_width": 4,
    "sample_height": 4,
    "sample_frames": 5,
    "max_text_seq_length": TEXT_TOKENS,
}
_SCHEDULER: dict[str, Any] = {"prediction_type": "v_prediction", "timestep_spacing": "trailing"}
_FACES: dict[str, Any] = {
    "is_train_face": True,
    "cross_attn_interval": 2,
    "cross_attn_dim_head": 4,
    "cross_attn_num_heads": 2,
    "LFE_id_dim": 8,
    "LFE_vit_dim": 8,
    "LFE_depth": 2,
    "LFE_dim_head": 4,
    "LFE_num_heads": 2,
    "LFE_num_id_token": 2,
    "LFE_num_querie": 3,
    "LFE_output_dim": 21,  # two thirds of the hidden width, as the face layers expect
    "LFE_ff_mult": 1,
    "LFE_num_scale": 2,
}


def _vae() -> AutoencoderKLCogVideoX:
    return AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 3,
        up_block_types=("CogVideoXUpBlock3D",) * 3,
        block_out_channels=(8, 8, 8),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
        temporal_compression_ratio=4,
    ).eval()


@seeded
def _cogvideox() -> CogVideoXPipeline:
    transformer = CogVideoXTransformer3DModel(in_channels=4, **_SIZES).eval()
    return CogVideoXPipeline(*t5(), _vae(), transformer, CogVideoXDDIMScheduler(**_SCHEDULER))


@seeded
def _consisid() -> ConsisIDPipeline:
    # a face layer follows blocks 0 and 2
    sizes = {**_SIZES, "num_layers": 4}
    transformer = ConsisIDTransformer3DModel(in_channels=8, **sizes, **_FACES).eval()
    return ConsisIDPipeline(*t5(), _vae(), transformer, CogVideoXDPMScheduler(**_SCHEDULER))


def _face_features() -> dict[str, torch.Tensor | list[torch.Tensor]]:
    return {
        "id_cond": embedding(1, 2, 8),
        "id_vit_hidden": [embedding(2, 2, 5, 8), embedding(3, 2, 5, 8)],
    }


_RETURNS = ("hidden_states", "encoder_hidden_states")
COGVIDEOX = Family(
    name="CogVideoX",
    build=_cogvideox,
    call=_CALL,
    blocks=names("transformer_blocks", 3),
    returns=_RETURNS,
    cache_context=True,
)
CONSISID = Family(
    name="ConsisID",
    build=_consisid,
    call={**_CALL, "image": Image.new("RGB", (16, 16), "red"), **_face_features()},
    blocks=names("transformer_blocks", 4),
    returns=_RETURNS,
)
