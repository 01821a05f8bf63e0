"""The embedded model's parts, untrained: Latte's layout, small."""

from typing import Any

from diffusers import AutoencoderKL, DDIMScheduler, LattePipeline, LatteTransformer3DModel
from transformers import T5Config, T5EncoderModel, T5Tokenizer

from foresight.models import clips

TEXT_WIDTH = 128
TEXT_ENCODER: dict[str, Any] = {
    "d_model": TEXT_WIDTH,
    "d_kv": 32,
    "d_ff": 256,
    "num_heads": 4,
    "dropout_rate": 0.0,
    "feed_forward_proj": "gated-gelu",
}
LATENT_CHANNELS = 4
NUM_FRAMES = 16


def build_tokenizer() -> T5Tokenizer:
    """A word-level T5 tokenizer for the caption grammar; unknown words fall back to letters."""
    words = {
        w
        for group in (clips.MOTIONS, clips.SPEEDS, clips.BACKGROUNDS, clips.CAMERAS)
        for w in group
    }
    words |= {*clips.COLOURS, *clips.SHAPES, "a an and over"}
    words = sorted({word for text in words for word in text.split()})
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -4.0), (",", -4.0)]
    pieces += [(f"▁{word}", -2.0) for word in words]
    pieces += [(letter, -9.0) for letter in "abcdefghijklmnopqrstuvwxyz0123456789.'-"]
    pieces += [(f"▁{letter}", -9.0) for letter in "bcdefghijklmnopqrstuvwxyz"]
    return T5Tokenizer(vocab=pieces, extra_ids=0)


def build_pipeline() -> LattePipeline:
    """The untrained pipeline: Latte's layout (spatial and temporal blocks, DDIM, T5), small."""
    tokenizer = build_tokenizer()
    vocabulary = len(tokenizer)
    text_encoder = T5EncoderModel(T5Config(vocab_size=vocabulary, num_layers=4, **TEXT_ENCODER))
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(24, 48, 64),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        mid_block_add_attention=False,
        sample_size=64,
    )
    transformer = LatteTransformer3DModel(
        num_attention_heads=4,
        attention_head_dim=32,
        in_channels=LATENT_CHANNELS,
        out_channels=2 * LATENT_CHANNELS,  # LattePipeline drops the second half
        num_layers=6,
        cross_attention_dim=128,
        attention_bias=True,
        sample_size=16,
        patch_size=4,
        activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        norm_eps=1e-6,
        caption_channels=TEXT_WIDTH,
        video_length=NUM_FRAMES,
    )
    scheduler = DDIMScheduler(
        beta_schedule="linear",
        beta_start=0.0001,
        beta_end=0.02,
        clip_sample=False,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
    )
    return LattePipeline(tokenizer, text_encoder, vae, transformer, scheduler)
