"""Mochi and EasyAnimate: video and text streams, guidance in one batch."""

# diffusers annotates its constructors with their defaults' types
# pyright: reportArgumentType=false

import torch
from diffusers import (
    AutoencoderKLMagvit,
    AutoencoderKLMochi,
    EasyAnimatePipeline,
    EasyAnimateTransformer3DModel,
    FlowMatchEulerDiscreteScheduler,
    MochiPipeline,
    MochiTransformer3DModel,
)

from .family import PROMPT, STEPS, TEXT_TOKENS, TEXT_WIDTH, Family, embedding, names, seeded, t5

_CALL = {
    "num_inference_steps": STEPS,
    "guidance_scale": 4.0,
    "output_type": "latent",
}
_ONES = torch.ones(1, TEXT_TOKENS, dtype=torch.long)
_RETURNS = ("hidden_states", "encoder_hidden_states")


@seeded
def _mochi() -> MochiPipeline:
    tokenizer, text_encoder = t5()
    transformer = MochiTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=3,
        pooled_projection_dim=16,
        in_channels=12,
        text_embed_dim=TEXT_WIDTH,
        time_embed_dim=8,
        max_sequence_length=TEXT_TOKENS,
    ).eval()
    vae = AutoencoderKLMochi(
        encoder_block_out_channels=(32, 32, 32, 32),
        decoder_block_out_channels=(32, 32, 32, 32),
        layers_per_block=(1, 1, 1, 1, 1),
        add_attention_block=(False, False, False, False, False),
    ).eval()
    scheduler = FlowMatchEulerDiscreteScheduler(invert_sigmas=True)
    return MochiPipeline(scheduler, vae, text_encoder, tokenizer, transformer)


@seeded
def _easyanimate() -> EasyAnimatePipeline:
    transformer = EasyAnimateTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        patch_size=2,
        num_layers=3,
        mmdit_layers=2,
        time_embed_dim=8,
        text_embed_dim=TEXT_WIDTH,
    ).eval()
    vae = AutoencoderKLMagvit(
        latent_channels=4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=2,
        spatial_group_norm=False,
    ).eval()
    return EasyAnimatePipeline(
        vae=vae,
        text_encoder=None,
        tokenizer=None,
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(),
    )


MOCHI = Family(
    name="Mochi",
    build=_mochi,
    call={
        **_CALL,
        "prompt": PROMPT,
        "negative_prompt": "",
        "height": 32,
        "width": 32,
        "num_frames": 7,
        "max_sequence_length": TEXT_TOKENS,
    },
    blocks=names("transformer_blocks", 3),
    returns=_RETURNS,
    cache_context=True,
)
EASYANIMATE = Family(
    name="EasyAnimate",
    build=_easyanimate,
    call={
        **_CALL,
        "height": 32,
        "width": 32,
        "num_frames": 5,
        "prompt_embeds": embedding(1, 1, TEXT_TOKENS, TEXT_WIDTH),
        "prompt_attention_mask": _ONES,
        "negative_prompt_embeds": embedding(2, 1, TEXT_TOKENS, TEXT_WIDTH),
        "negative_prompt_attention_mask": _ONES,
    },
    blocks=names("transformer_blocks", 3),
    returns=_RETURNS,
)
