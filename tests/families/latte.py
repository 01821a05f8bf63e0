"""Latte: spatial and temporal blocks in turn."""

# diffusers annotates its constructors with their defaults' types
# pyright: reportArgumentType=false

from diffusers import AutoencoderKL, DDIMScheduler, LattePipeline, LatteTransformer3DModel

from .family import PROMPT, STEPS, TEXT_WIDTH, Family, seeded, t5


@seeded
def _latte() -> LattePipeline:
    tokenizer, text_encoder = t5()
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        mid_block_add_attention=False,
    )
    transformer = LatteTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=8,
        num_layers=3,
        cross_attention_dim=32,
        attention_bias=True,
        sample_size=8,
        patch_size=2,
        activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        norm_eps=1e-6,
        caption_channels=TEXT_WIDTH,
        video_length=4,
    ).eval()
    scheduler = DDIMScheduler(clip_sample=False, prediction_type="v_prediction")
    return LattePipeline(tokenizer, text_encoder, vae, transformer, scheduler)


LATTE = Family(
    name="Latte",
    build=_latte,
    call={
        "prompt": PROMPT,
        "height": 16,
        "width": 16,
        "video_length": 4,
        "num_inference_steps": STEPS,
        "guidance_scale": 4.0,
        "output_type": "latent",
    },
    blocks=tuple(
        f"{stack}.{index}"
        for index in range(3)
        for stack in ("transformer_blocks", "temporal_transformer_blocks")
    ),
)
