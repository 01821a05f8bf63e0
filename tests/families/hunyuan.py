"""HunyuanVideo, HunyuanVideo 1.5 and Kandinsky 5: text blocks first, guidance in two calls."""

# diffusers annotates its constructors with their defaults' types
# pyright: reportArgumentType=false

import torch
from diffusers import (
    AutoencoderKLHunyuanVideo,
    AutoencoderKLHunyuanVideo15,
    ClassifierFreeGuidance,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideo15Pipeline,
    HunyuanVideo15Transformer3DModel,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
    Kandinsky5T2VPipeline,
    Kandinsky5Transformer3DModel,
)

from .family import STEPS, TEXT_TOKENS, TEXT_WIDTH, Family, embedding, names, seeded

_CALL = {
    "height": 16,
    "width": 16,
    "num_frames": 5,
    "num_inference_steps": STEPS,
    "output_type": "latent",
}
_RETURNS = ("hidden_states", "encoder_hidden_states")


def _vae() -> AutoencoderKLHunyuanVideo:
    return AutoencoderKLHunyuanVideo(
        latent_channels=4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        mid_block_add_attention=False,
    ).eval()


@seeded
def _hunyuan() -> HunyuanVideoPipeline:
    transformer = HunyuanVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=2,
        num_single_layers=2,
        num_refiner_layers=2,
        mlp_ratio=2.0,
        patch_size=1,
        text_embed_dim=TEXT_WIDTH,
        pooled_projection_dim=8,
        rope_axes_dim=(4, 4, 4),
    ).eval()
    return HunyuanVideoPipeline(
        text_encoder=None,
        tokenizer=None,
        transformer=transformer,
        vae=_vae(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
        text_encoder_2=None,
        tokenizer_2=None,
    )


@seeded
def _hunyuan_15() -> HunyuanVideo15Pipeline:
    transformer = HunyuanVideo15Transformer3DModel(
        in_channels=9,  # latents, latents of a first frame, and a mask
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=3,
        num_refiner_layers=2,
        mlp_ratio=2.0,
        text_embed_dim=TEXT_WIDTH,
        text_embed_2_dim=16,
        image_embed_dim=8,
        rope_axes_dim=(4, 4, 4),
        target_size=16,
        task_type="t2v",
    ).eval()
    vae = AutoencoderKLHunyuanVideo15(
        latent_channels=4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        spatial_compression_ratio=8,
    ).eval()
    pipe = HunyuanVideo15Pipeline(
        text_encoder=None,
        tokenizer=None,
        transformer=transformer,
        vae=vae,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=5.0),
        text_encoder_2=None,
        tokenizer_2=None,
        guider=ClassifierFreeGuidance(guidance_scale=4.0),
    )
    pipe.vision_num_semantic_tokens = 3
    return pipe


@seeded
def _kandinsky() -> Kandinsky5T2VPipeline:
    transformer = Kandinsky5Transformer3DModel(
        in_visual_dim=4,
        in_text_dim=TEXT_WIDTH,
        in_text_dim2=8,
        time_dim=16,
        out_visual_dim=4,
        model_dim=24,
        ff_dim=32,
        num_text_blocks=2,
        num_visual_blocks=3,
        axes_dims=(4, 4, 4),
    ).eval()
    # it starts with gates of zero, that is with blocks that do nothing
    for name, parameter in transformer.named_parameters():
        if "modulation" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return Kandinsky5T2VPipeline(
        transformer=transformer,
        vae=_vae(),
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=5.0),
    )


def _mask(used: int) -> torch.Tensor:
    return (torch.arange(TEXT_TOKENS) < used).long()[None]


HUNYUAN_VIDEO = Family(
    name="HunyuanVideo",
    build=_hunyuan,
    call={
        **_CALL,
        "true_cfg_scale": 4.0,
        "prompt_embeds": embedding(1, 1, TEXT_TOKENS, TEXT_WIDTH),
        "pooled_prompt_embeds": embedding(2, 1, 8),
        "prompt_attention_mask": _mask(6),
        "negative_prompt_embeds": embedding(3, 1, TEXT_TOKENS, TEXT_WIDTH),
        "negative_pooled_prompt_embeds": embedding(4, 1, 8),
        "negative_prompt_attention_mask": _mask(3),
    },
    blocks=names("transformer_blocks", 2) + names("single_transformer_blocks", 2),
    returns=_RETURNS,
    branches="apart",
    calls=2,
    cache_context=True,
    text_blocks=names("context_embedder.token_refiner.refiner_blocks", 2),
)
HUNYUAN_VIDEO_15 = Family(
    name="HunyuanVideo 1.5",
    build=_hunyuan_15,
    call={
        **_CALL,
        "prompt_embeds": embedding(1, 1, TEXT_TOKENS, TEXT_WIDTH),
        "prompt_embeds_mask": _mask(6),
        "prompt_embeds_2": embedding(2, 1, 4, 16),
        "prompt_embeds_mask_2": torch.ones(1, 4, dtype=torch.long),
        "negative_prompt_embeds": embedding(3, 1, TEXT_TOKENS, TEXT_WIDTH),
        "negative_prompt_embeds_mask": _mask(3),
        "negative_prompt_embeds_2": embedding(4, 1, 4, 16),
        "negative_prompt_embeds_mask_2": torch.zeros(1, 4, dtype=torch.long),
    },
    blocks=names("transformer_blocks", 3),
    returns=_RETURNS,
    branches="apart",
    calls=2,
    cache_context=True,
    text_blocks=names("context_embedder.token_refiner.refiner_blocks", 2),
    has_callback=False,
)
KANDINSKY_5 = Family(
    name="Kandinsky 5",
    build=_kandinsky,
    call={
        **_CALL,
        "guidance_scale": 4.0,
        "prompt_embeds_qwen": embedding(1, 1, TEXT_TOKENS, TEXT_WIDTH),
        "prompt_embeds_clip": embedding(2, 1, 8),
        "prompt_cu_seqlens": torch.tensor([0, TEXT_TOKENS], dtype=torch.int32),
        "negative_prompt_embeds_qwen": embedding(3, 1, 5, TEXT_WIDTH),
        "negative_prompt_embeds_clip": embedding(4, 1, 8),
        "negative_prompt_cu_seqlens": torch.tensor([0, 5], dtype=torch.int32),
    },
    blocks=names("visual_transformer_blocks", 3),
    returns=("visual_embed",),
    branches="apart",
    calls=2,
    text_blocks=names("text_transformer_blocks", 2),
)
