"""Allegro and SanaVideo: one list of blocks, one stream, guidance in one batch."""

# diffusers annotates its constructors with their defaults' types
# pyright: reportArgumentType=false

import torch
from diffusers import (
    AllegroPipeline,
    AllegroTransformer3DModel,
    AutoencoderKLAllegro,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    SanaVideoPipeline,
    SanaVideoTransformer3DModel,
)

from .family import PROMPT, STEPS, TEXT_TOKENS, TEXT_WIDTH, Family, embedding, names, seeded, t5
from .wan import tiny_wan_vae

_CALL = {
    "num_inference_steps": STEPS,
    "guidance_scale": 4.0,
    "output_type": "latent",
}
_ONES = torch.ones(1, TEXT_TOKENS, dtype=torch.long)


@seeded
def _allegro() -> AllegroPipeline:
    transformer = AllegroTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        num_layers=3,
        cross_attention_dim=24,
        sample_height=4,
        sample_width=4,
        sample_frames=2,
        caption_channels=TEXT_WIDTH,
    ).eval()
    vae = AutoencoderKLAllegro(
        down_block_types=("AllegroDownBlock3D",) * 3,
        up_block_types=("AllegroUpBlock3D",) * 3,
        block_out_channels=(8, 8, 8),
        temporal_downsample_blocks=(True, True, False),
        temporal_upsample_blocks=(False, True, True),
        layers_per_block=1,
        norm_num_groups=2,
    ).eval()
    scheduler = EulerAncestralDiscreteScheduler(prediction_type="v_prediction")
    return AllegroPipeline(*t5(), vae, transformer, scheduler)


@seeded
def _sana_video() -> SanaVideoPipeline:
    transformer = SanaVideoTransformer3DModel(
        in_channels=16,
        out_channels=16,
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=3,
        num_cross_attention_heads=2,
        cross_attention_head_dim=12,
        cross_attention_dim=24,
        caption_channels=TEXT_WIDTH,
        rope_max_seq_len=32,
    ).eval()
    return SanaVideoPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=tiny_wan_vae(),
        transformer=transformer,
        scheduler=DPMSolverMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
    )


ALLEGRO = Family(
    name="Allegro",
    build=_allegro,
    call={
        **_CALL,
        "prompt": PROMPT,
        "height": 16,
        "width": 16,
        "num_frames": 8,
        "max_sequence_length": TEXT_TOKENS,
    },
    blocks=names("transformer_blocks", 3),
)
SANA_VIDEO = Family(
    name="SanaVideo",
    build=_sana_video,
    call={
        **_CALL,
        "height": 32,
        "width": 32,
        "frames": 9,
        "use_resolution_binning": False,
        "negative_prompt": None,
        "prompt_embeds": embedding(1, 1, TEXT_TOKENS, TEXT_WIDTH),
        "prompt_attention_mask": _ONES,
        "negative_prompt_embeds": embedding(2, 1, TEXT_TOKENS, TEXT_WIDTH),
        "negative_prompt_attention_mask": _ONES,
    },
    blocks=names("transformer_blocks", 3),
)
