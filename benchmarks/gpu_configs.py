"""The models that `gpu.py` measures: their published configurations.

The published ones are those of the released checkpoints' files; what is not named is the default of
diffusers' class, which is the same.
"""

# diffusers annotates its constructors with their defaults' types
# pyright: reportArgumentType=false

from diffusers import (
    AutoencoderKL,
    AutoencoderKLCogVideoX,
    AutoencoderKLHunyuanVideo,
    AutoencoderKLWan,
    CogVideoXDDIMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
    LattePipeline,
    LatteTransformer3DModel,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)

from benchmarks.gpu_models import (
    LATTE_STYLE,
    BenchmarkModel,
    Scale,
    guided_text,
    hunyuan_text,
    latte_text,
    masked_text,
)
from benchmarks.gpu_text import (
    LLAMA_AND_CLIP,
    T5_XXL,
    UMT5_XXL,
)
from benchmarks.gpu_tiny import (
    TINY_COGVIDEOX,
    TINY_HUNYUAN,
    TINY_LATTE,
    TINY_OPEN_SORA,
    TINY_WAN,
)
from foresight.models import (
    AutoencoderKLOpenSora,
    OpenSoraFlowScheduler,
    OpenSoraPipeline,
    STDiT3Transformer3DModel,
)

LATTE = BenchmarkModel(
    title="Latte-1",
    pipeline=LattePipeline,
    transformer=LatteTransformer3DModel,
    vae=AutoencoderKL,
    scheduler=lambda: DDIMScheduler(
        beta_start=0.0001, beta_end=0.02, beta_schedule="linear", clip_sample=False
    ),
    text=latte_text,
    steps=50,
    guidance=7.5,
    frames_name="video_length",
    full=Scale(
        transformer={
            **LATTE_STYLE,
            "num_attention_heads": 16,
            "attention_head_dim": 72,
            "num_layers": 28,
            "cross_attention_dim": 1152,
            "sample_size": 64,
            "caption_channels": 4096,
            "video_length": 16,
        },
        vae={
            "down_block_types": ("DownEncoderBlock2D",) * 4,
            "up_block_types": ("UpDecoderBlock2D",) * 4,
            "block_out_channels": (128, 256, 512, 512),
            "layers_per_block": 2,
        },
        encoders=(T5_XXL.taking(120, times=2),),
        text_shape=(120, 4096),
        sizes=((512, 512, 16),),
    ),
    tiny=TINY_LATTE,
)

OPEN_SORA = BenchmarkModel(
    title="Open-Sora 1.2 (STDiT3-XL/2)",
    pipeline=OpenSoraPipeline,
    transformer=STDiT3Transformer3DModel,
    vae=AutoencoderKLOpenSora,
    scheduler=OpenSoraFlowScheduler,
    text=masked_text,
    steps=30,
    guidance=7.0,
    full=Scale(
        transformer={},
        vae={},
        encoders=(T5_XXL.taking(300, times=1),),
        text_shape=(300, 4096),
        sizes=((480, 854, 51),),
    ),
    tiny=TINY_OPEN_SORA,
)

COGVIDEOX = BenchmarkModel(
    title="CogVideoX-2B",
    pipeline=CogVideoXPipeline,
    transformer=CogVideoXTransformer3DModel,
    vae=AutoencoderKLCogVideoX,
    scheduler=lambda: CogVideoXDDIMScheduler(
        clip_sample=False,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        rescale_betas_zero_snr=True,
    ),
    text=guided_text,
    steps=50,
    guidance=6.0,
    full=Scale(
        transformer={},
        vae={},
        encoders=(T5_XXL.taking(226, times=2),),
        text_shape=(226, 4096),
        sizes=((480, 720, 49),),
    ),
    tiny=TINY_COGVIDEOX,
)

WAN = BenchmarkModel(
    title="Wan2.1-T2V-1.3B",
    pipeline=WanPipeline,
    transformer=WanTransformer3DModel,
    vae=AutoencoderKLWan,
    scheduler=lambda: UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    ),
    text=guided_text,
    steps=50,
    guidance=5.0,
    full=Scale(
        transformer={
            "num_attention_heads": 12,
            "attention_head_dim": 128,
            "ffn_dim": 8960,
            "num_layers": 30,
        },
        vae={},
        encoders=(UMT5_XXL.taking(512, times=2),),
        text_shape=(512, 4096),
        sizes=((480, 832, 81),),
    ),
    tiny=TINY_WAN,
)

HUNYUAN = BenchmarkModel(
    title="HunyuanVideo",
    pipeline=HunyuanVideoPipeline,
    transformer=HunyuanVideoTransformer3DModel,
    vae=AutoencoderKLHunyuanVideo,
    scheduler=lambda: FlowMatchEulerDiscreteScheduler(shift=7.0),
    text=hunyuan_text,
    steps=50,
    guidance=6.0,
    tiled_vae=True,
    full=Scale(
        transformer={},
        vae={},
        encoders=LLAMA_AND_CLIP,
        text_shape=(256, 4096),
        pooled_width=768,
        sizes=(
            (720, 1280, 129),
            (544, 960, 129),
            (544, 960, 61),
            (480, 832, 49),
            (320, 512, 61),
        ),
    ),
    tiny=TINY_HUNYUAN,
)

MODELS = {
    "latte-1": LATTE,
    "open-sora-1.2": OPEN_SORA,
    "cogvideox-2b": COGVIDEOX,
    "wan2.1-1.3b": WAN,
    "hunyuanvideo": HUNYUAN,
}
