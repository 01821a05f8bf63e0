"""LTX-Video (one stream) and LTX-2 (video and sound, up to three passes a step)."""

# diffusers annotates its constructors with their defaults' types
# pyright: reportArgumentType=false

from diffusers import (
    AutoencoderKLLTX2Audio,
    AutoencoderKLLTX2Video,
    AutoencoderKLLTXVideo,
    FlowMatchEulerDiscreteScheduler,
    LTX2Pipeline,
    LTX2VideoTransformer3DModel,
    LTXPipeline,
    LTXVideoTransformer3DModel,
)
from diffusers.pipelines.ltx2 import LTX2TextConnectors, LTX2Vocoder

from .family import PROMPT, STEPS, TEXT_TOKENS, TEXT_WIDTH, Family, embedding, names, seeded, t5


@seeded
def _ltx() -> LTXPipeline:
    tokenizer, text_encoder = t5()
    transformer = LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=2,
        attention_head_dim=12,
        cross_attention_dim=24,
        num_layers=3,
        caption_channels=TEXT_WIDTH,
    ).eval()
    vae = AutoencoderKLLTXVideo(
        latent_channels=8,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
        spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False),
        patch_size=1,
        encoder_causal=True,
    ).eval()
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    return LTXPipeline(scheduler, vae, text_encoder, tokenizer, transformer)


@seeded
def _ltx_2() -> LTX2Pipeline:
    transformer = LTX2VideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        audio_in_channels=4,
        audio_out_channels=4,
        audio_num_attention_heads=2,
        audio_attention_head_dim=4,
        audio_cross_attention_dim=8,
        num_layers=2,
        caption_channels=TEXT_WIDTH,
        rope_double_precision=False,
    ).eval()
    vae = AutoencoderKLLTX2Video(
        latent_channels=4,
        block_out_channels=(8,),
        decoder_block_out_channels=(8,),
        layers_per_block=(1,),
        decoder_layers_per_block=(1, 1),
        spatio_temporal_scaling=(True,),
        decoder_spatio_temporal_scaling=(True,),
        decoder_inject_noise=(False, False),
        downsample_type=("spatial",),
        upsample_residual=(False,),
        upsample_factor=(1,),
    ).eval()
    audio_vae = AutoencoderKLLTX2Audio(
        base_channels=4,
        ch_mult=(1,),
        num_res_blocks=1,
        latent_channels=2,
        mel_bins=8,
    ).eval()
    connectors = LTX2TextConnectors(
        caption_channels=TEXT_WIDTH,
        text_proj_in_factor=2,
        video_connector_num_attention_heads=4,
        video_connector_attention_head_dim=8,
        video_connector_num_layers=1,
        video_connector_num_learnable_registers=None,
        audio_connector_num_attention_heads=4,
        audio_connector_attention_head_dim=8,
        audio_connector_num_layers=1,
        audio_connector_num_learnable_registers=None,
        rope_double_precision=False,
    ).eval()
    vocoder = LTX2Vocoder(
        in_channels=8,
        hidden_channels=8,
        upsample_kernel_sizes=[4],
        upsample_factors=[2],
        resnet_kernel_sizes=[3],
        resnet_dilations=[[1]],
    ).eval()
    return LTX2Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=vae,
        audio_vae=audio_vae,
        text_encoder=None,
        tokenizer=None,
        connectors=connectors,
        transformer=transformer,
        vocoder=vocoder,
    )


LTX_VIDEO = Family(
    name="LTX-Video",
    build=_ltx,
    call={
        "prompt": PROMPT,
        "negative_prompt": "",
        "height": 32,
        "width": 32,
        "num_frames": 9,
        "num_inference_steps": STEPS,
        "guidance_scale": 4.0,
        "max_sequence_length": TEXT_TOKENS,
        "output_type": "latent",
    },
    blocks=names("transformer_blocks", 3),
    cache_context=True,
)
LTX_2 = Family(
    name="LTX-2",
    build=_ltx_2,
    call={
        "prompt_embeds": embedding(1, 1, TEXT_TOKENS, TEXT_WIDTH * 2),
        "prompt_attention_mask": embedding(0, 1, TEXT_TOKENS).isfinite().long(),
        "negative_prompt_embeds": embedding(2, 1, TEXT_TOKENS, TEXT_WIDTH * 2),
        "negative_prompt_attention_mask": embedding(0, 1, TEXT_TOKENS).isfinite().long(),
        "height": 32,
        "width": 32,
        "num_frames": 9,
        "num_inference_steps": STEPS,
        "guidance_scale": 4.0,
        "stg_scale": 1.0,
        "modality_scale": 3.0,
        "spatio_temporal_guidance_blocks": [1],
        "output_type": "latent",
    },
    blocks=names("transformer_blocks", 2),
    returns=("hidden_states", "audio_hidden_states"),
    branches="apart",  # cond and uncond in one batch, then two perturbed passes
    calls=3,
    cache_context=True,
)
