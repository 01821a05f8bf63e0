"""Wan 2.1, Wan 2.2 and SkyReels-V2: one list of blocks, guidance in two calls."""

from typing import Any

from diffusers import (
    AutoencoderKLWan,
    SkyReelsV2Pipeline,
    SkyReelsV2Transformer3DModel,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)

from .family import PROMPT, STEPS, TEXT_TOKENS, TEXT_WIDTH, Family, names, seeded, umt5

_CALL = {
    "prompt": PROMPT,
    "negative_prompt": "a blue square spins",
    "height": 32,
    "width": 32,
    "num_frames": 9,
    "num_inference_steps": STEPS,
    "guidance_scale": 4.0,
    "max_sequence_length": TEXT_TOKENS,
    "output_type": "latent",
}
_SIZES: dict[str, Any] = {
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "in_channels": 16,
    "out_channels": 16,
    "text_dim": TEXT_WIDTH,
    "freq_dim": 16,
    "ffn_dim": 32,
    "num_layers": 3,
    "rope_max_seq_len": 32,
}


def tiny_wan_vae() -> AutoencoderKLWan:
    """16 channels, 4x in time and 8x in space."""
    return AutoencoderKLWan(base_dim=4, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1).eval()


def _parts(**transformers: Any) -> dict[str, Any]:
    tokenizer, text_encoder = umt5()
    return {
        "tokenizer": tokenizer,
        "text_encoder": text_encoder,
        "vae": tiny_wan_vae(),
        "scheduler": UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
        **transformers,
    }


@seeded
def _wan() -> WanPipeline:
    return WanPipeline(**_parts(transformer=WanTransformer3DModel(**_SIZES).eval()))


@seeded
def _wan_22() -> WanPipeline:
    experts = {
        name: WanTransformer3DModel(**_SIZES).eval() for name in ("transformer", "transformer_2")
    }
    # with 6 steps and a flow shift of 3, four timesteps lie above this boundary and two below
    return WanPipeline(**_parts(**experts), boundary_ratio=0.7)


@seeded
def _skyreels() -> SkyReelsV2Pipeline:
    return SkyReelsV2Pipeline(**_parts(transformer=SkyReelsV2Transformer3DModel(**_SIZES).eval()))


WAN_21 = Family(
    name="Wan 2.1",
    build=_wan,
    call=_CALL,
    blocks=names("blocks", 3),
    branches="apart",
    calls=2,
    cache_context=True,
)
WAN_22 = Family(
    name="Wan 2.2",
    build=_wan_22,
    call={**_CALL, "guidance_scale_2": 3.0},
    blocks=names("blocks", 3),
    branches="apart",
    calls=2,
    cache_context=True,
    transformers=("transformer", "transformer_2"),
)
SKYREELS_V2 = Family(
    name="SkyReels-V2",
    build=_skyreels,
    call=_CALL,
    blocks=names("blocks", 3),
    branches="apart",
    calls=2,
    cache_context=True,
)
