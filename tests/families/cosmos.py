"""Cosmos 1: guidance in two calls, the solver called twice a step."""

from typing import Any

import torch
from diffusers import (
    AutoencoderKLCosmos,
    CosmosTextToWorldPipeline,
    CosmosTransformer3DModel,
    EDMEulerScheduler,
)

from .family import PROMPT, STEPS, TEXT_TOKENS, TEXT_WIDTH, Family, names, seeded, t5


class _PassesAll:
    """Stands where the guardrail, a separate package of several gigabytes, would stand."""

    def to(self, device: torch.device | str) -> None:
        pass

    def check_text_safety(self, prompt: str) -> bool:
        return True

    def check_video_safety(self, frames: Any) -> Any:
        return frames


@seeded
def _cosmos() -> CosmosTextToWorldPipeline:
    tokenizer, text_encoder = t5()
    transformer = CosmosTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=3,
        mlp_ratio=2,
        text_embed_dim=TEXT_WIDTH,
        adaln_lora_dim=4,
        max_size=(4, 8, 8),
        concat_padding_mask=False,  # the mask is resized by torchvision, which is not needed else
    ).eval()
    vae = AutoencoderKLCosmos(
        latent_channels=4,
        encoder_block_out_channels=(8, 8, 8),
        decode_block_out_channels=(8, 8, 8),
        attention_resolutions=(),
        resolution=32,
        num_layers=1,
        patch_size=2,
        spatial_compression_ratio=4,
        temporal_compression_ratio=4,
    ).eval()
    return CosmosTextToWorldPipeline(
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        transformer=transformer,
        vae=vae,
        scheduler=EDMEulerScheduler(
            sigma_min=0.002, sigma_max=80, sigma_data=0.5, final_sigmas_type="sigma_min"
        ),
        safety_checker=_PassesAll(),
    )


COSMOS_1 = Family(
    name="Cosmos 1",
    build=_cosmos,
    call={
        "num_inference_steps": STEPS,
        "guidance_scale": 4.0,
        "output_type": "latent",
        "prompt": PROMPT,
        "negative_prompt": "",
        "height": 32,
        "width": 32,
        "num_frames": 5,
        "max_sequence_length": TEXT_TOKENS,
    },
    blocks=names("transformer_blocks", 3),
    branches="apart",
    calls=2,
    scheduler_steps=2,
)
