"""The architectures of `gpu_configs.py` in tiny, for machines without a GPU."""

# diffusers annotates its constructors with their defaults' types
# pyright: reportArgumentType=false

from benchmarks.gpu_models import LATTE_STYLE, Arguments, Scale, Size
from benchmarks.gpu_text import TINY_LLAMA_AND_CLIP, TINY_T5, TINY_UMT5, TextEncoder

_TOKENS, _WIDTH, _POOLED = 8, 32, 8


def _tiny(
    transformer: Arguments, vae: Arguments, encoders: tuple[TextEncoder, ...], size: Size
) -> Scale:
    shape = (_TOKENS, _WIDTH)
    return Scale(transformer, vae, encoders, shape, (size,), pooled_width=_POOLED)


TINY_LATTE = _tiny(
    transformer={
        **LATTE_STYLE,
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "num_layers": 2,
        "cross_attention_dim": 32,
        "sample_size": 8,
        "caption_channels": _WIDTH,
        "video_length": 4,
    },
    vae={
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "block_out_channels": (8, 8),
        "norm_num_groups": 4,
    },
    encoders=(TINY_T5.taking(8, times=2),),
    size=(16, 16, 4),
)
TINY_OPEN_SORA = _tiny(
    transformer={
        "hidden_size": 32,
        "depth": 2,
        "num_heads": 2,
        "caption_channels": _WIDTH,
        "model_max_length": _TOKENS,
    },
    vae={
        "vae_2d": {
            "block_out_channels": (8, 8, 8, 8),
            "layers_per_block": 1,
            "norm_num_groups": 4,
        },
        "vae_temporal": {
            "filters": 4,
            "num_res_blocks": 1,
            "channel_multipliers": (1, 1, 1, 1),
            "num_groups": 2,
        },
    },
    encoders=(TINY_T5.taking(8, times=1),),
    size=(32, 32, 17),
)
TINY_COGVIDEOX = _tiny(
    transformer={
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "in_channels": 4,
        "out_channels": 4,
        "time_embed_dim": 8,
        "text_embed_dim": _WIDTH,
        "num_layers": 3,
        "sample_width": 4,
        "sample_height": 4,
        "sample_frames": 5,
        "max_text_seq_length": _TOKENS,
    },
    vae={
        "down_block_types": ("CogVideoXDownBlock3D",) * 3,
        "up_block_types": ("CogVideoXUpBlock3D",) * 3,
        "block_out_channels": (8, 8, 8),
        "latent_channels": 4,
        "layers_per_block": 1,
        "norm_num_groups": 2,
    },
    encoders=(TINY_T5.taking(8, times=2),),
    size=(16, 16, 5),
)
TINY_WAN = _tiny(
    transformer={
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "text_dim": _WIDTH,
        "freq_dim": 16,
        "ffn_dim": 32,
        "num_layers": 3,
        "rope_max_seq_len": 32,
    },
    vae={"base_dim": 4, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1},
    encoders=(TINY_UMT5.taking(8, times=2),),
    size=(32, 32, 5),
)
TINY_HUNYUAN = _tiny(
    transformer={
        "in_channels": 4,
        "out_channels": 4,
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "num_layers": 2,
        "num_single_layers": 2,
        "num_refiner_layers": 2,
        "mlp_ratio": 2.0,
        "patch_size": 1,
        "text_embed_dim": _WIDTH,
        "pooled_projection_dim": _POOLED,
        "rope_axes_dim": (4, 4, 4),
    },
    vae={
        "latent_channels": 4,
        "block_out_channels": (8, 8, 8, 8),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "mid_block_add_attention": False,
    },
    encoders=TINY_LLAMA_AND_CLIP,
    size=(16, 16, 5),
)
