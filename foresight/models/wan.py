"""The parts of tiny-wan, untrained: Wan's layout (full 3D attention, causal 3D VAE), small."""

import torch
from diffusers import (
    AutoencoderKLWan,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d
from transformers import UMT5Config, UMT5EncoderModel

from foresight.models.architecture import TEXT_ENCODER, TEXT_WIDTH, build_tokenizer
from foresight.models.objectives import TEXT_LENGTH

LATENT_CHANNELS = 4
NUM_FRAMES = 17  # nine latent frames: the first pixel frame alone, then two at a time


def build_vae() -> AutoencoderKLWan:
    """The untrained VAE: 4 times smaller in space and 2 in time.

    Its convolutions start blind to the past, and those that resample time start by dropping and
    repeating frames: what was learned on single frames carries over to clips.
    """
    vae = AutoencoderKLWan(
        base_dim=24,
        z_dim=LATENT_CHANNELS,
        dim_mult=[1, 2],
        num_res_blocks=1,
        temperal_downsample=[True],
        patch_size=2,
        in_channels=12,
        out_channels=12,
        scale_factor_spatial=4,
        scale_factor_temporal=2,
        latents_mean=[0.0] * LATENT_CHANNELS,
        latents_std=[1.0] * LATENT_CHANNELS,
    )
    for module in vae.modules():
        if isinstance(module, WanCausalConv3d) and module.kernel_size[0] == 3:
            _forget_the_past(module)
    return vae


@torch.no_grad()
def _forget_the_past(convolution: WanCausalConv3d) -> None:
    convolution.weight[:, :, :-1] = 0
    if convolution.kernel_size == (3, 1, 1):  # resamples time
        repeats = convolution.out_channels // convolution.in_channels
        convolution.weight[:, :, -1, 0, 0] = torch.eye(convolution.in_channels).repeat(repeats, 1)
        torch.nn.init.zeros_(convolution.bias)


def build_pipeline() -> WanPipeline:
    """The untrained pipeline: 12 blocks, UniPC flow matching, UMT5 encoder.

    Its `tokenizer.model_max_length` is the text length that it is trained with; pass that as
    `max_sequence_length`, since padding takes part in Wan's cross attention.
    """
    tokenizer = build_tokenizer()
    tokenizer.model_max_length = TEXT_LENGTH
    vocabulary = len(tokenizer)
    text_encoder = UMT5EncoderModel(UMT5Config(vocab_size=vocabulary, num_layers=4, **TEXT_ENCODER))
    transformer = WanTransformer3DModel(
        patch_size=(1, 4, 4),
        num_attention_heads=4,
        attention_head_dim=32,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        text_dim=TEXT_WIDTH,
        ffn_dim=512,
        num_layers=12,
    )
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    return WanPipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        vae=build_vae(),
        scheduler=scheduler,
        transformer=transformer,
    )
