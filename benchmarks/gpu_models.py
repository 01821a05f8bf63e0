"""What a measured model is, and how its pipeline is built without downloads.

Weights are random: they cost the same time and memory as trained ones. So are text embeddings; the
text encoder is built apart (`gpu_text.py`), for a generation with given embeddings does without.
"""

import contextlib
import dataclasses
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch

from benchmarks.gpu_text import TextEncoder

DTYPE = torch.bfloat16
Size = tuple[int, int, int]
Arguments = dict[str, Any]
Random = Callable[..., torch.Tensor]
LATTE_STYLE: Arguments = {
    "in_channels": 4,
    "out_channels": 8,
    "attention_bias": True,
    "patch_size": 2,
    "activation_fn": "gelu-approximate",
    "num_embeds_ada_norm": 1000,
    "norm_type": "ada_norm_single",
    "norm_elementwise_affine": False,
    "norm_eps": 1e-6,
}


@dataclasses.dataclass(frozen=True)
class Scale:
    """A model's parts at one scale.

    Attributes:
        transformer, vae: Arguments of their constructors.
        encoders: What encodes a prompt.
        text_shape: Tokens and width of the prompt's embedding.
        pooled_width: Of the embedding of the prompt as a whole, where there is one.
        sizes: Height, width and frames to try, the largest first.
    """

    transformer: Arguments
    vae: Arguments
    encoders: tuple[TextEncoder, ...]
    text_shape: tuple[int, int]
    sizes: tuple[Size, ...]
    pooled_width: int = 0


@dataclasses.dataclass(frozen=True)
class BenchmarkModel:
    """A model, its pipeline, and how that is called.

    Attributes:
        title: As people call it.
        pipeline, transformer, vae: Classes.
        scheduler: Makes the noise scheduler that the model was released with.
        text: Makes the texts that the pipeline is called with, from what makes random tensors.
        steps, guidance: As released.
        full, tiny: The published scale, and one for machines without a GPU.
        frames_name: What the pipeline calls the number of frames.
        tiled_vae: Whether the release decodes in tiles.
    """

    title: str
    pipeline: type
    transformer: type
    vae: type
    scheduler: Callable[[], Any]
    text: Callable[[Scale, Random], Arguments]
    steps: int
    guidance: float
    full: Scale
    tiny: Scale
    frames_name: str = "num_frames"
    tiled_vae: bool = False

    def scale(self, name: str) -> Scale:
        """The scale called "full" or "tiny"."""
        return {"full": self.full, "tiny": self.tiny}[name]


def heading(name: str, model: BenchmarkModel, scale_name: str, steps: int) -> dict[str, Any]:
    """What every result says first: the model, and what it is run with."""
    return {
        "model": name,
        "title": model.title,
        "scale": scale_name,
        "dtype": str(DTYPE).removeprefix("torch."),
        "steps": steps,
        "guidance_scale": model.guidance,
    }


def build_pipeline(
    model: BenchmarkModel, scale: Scale, device: torch.device, dtype: torch.dtype
) -> Any:
    """The model's diffusers pipeline on the device, with random weights and no text encoder."""
    torch.manual_seed(0)
    with built_as(device, dtype):
        transformer = model.transformer(**scale.transformer)
        vae = model.vae(**scale.vae)
    for part in (transformer, vae):
        _as_loaded(part.eval().requires_grad_(False), dtype)
    if model.tiled_vae:
        vae.enable_tiling()
    parts = {"transformer": transformer, "vae": vae, "scheduler": model.scheduler()}
    taken = inspect.signature(model.pipeline).parameters
    absent = dict.fromkeys(name for name in taken if name.startswith(("text_encoder", "tokenizer")))
    pipe = model.pipeline(**parts, **absent)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def call_arguments(
    model: BenchmarkModel, scale: Scale, size: Size, device: torch.device, dtype: torch.dtype
) -> Arguments:
    """What the pipeline is called with, all but steps, generator and output type."""
    rng = torch.Generator("cpu").manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=rng).to(device, dtype)

    height, width, frames = size
    sizes = {"height": height, "width": width, model.frames_name: frames}
    return {**sizes, "guidance_scale": model.guidance, **model.text(scale, random)}


@contextlib.contextmanager
def built_as(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Modules made inside have their weights on the device and in this dtype from the start."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            yield
    finally:
        torch.set_default_dtype(before)


def _as_loaded(module: torch.nn.Module, dtype: torch.dtype) -> None:
    """Give parameters the dtype that `from_pretrained` would: diffusers keeps some in float32."""
    kept = set(getattr(module, "_keep_in_fp32_modules", None) or ())
    for name, parameter in module.named_parameters():
        parameter.data = parameter.data.to(torch.float32 if kept & set(name.split(".")) else dtype)


def guided_text(scale: Scale, random: Random) -> Arguments:
    """The prompt's embedding, and that of no prompt."""
    shape = (1, *scale.text_shape)
    return {"prompt_embeds": random(*shape), "negative_prompt_embeds": random(*shape)}


def latte_text(scale: Scale, random: Random) -> Arguments:
    """The same; Latte's empty prompt is a default that has to be taken back."""
    return {**guided_text(scale, random), "negative_prompt": None, "clean_caption": False}


def masked_text(scale: Scale, random: Random) -> Arguments:
    """The prompt's embedding, and which of its tokens count: all."""
    embeddings = random(1, *scale.text_shape)
    mask = torch.ones(embeddings.shape[:2], dtype=torch.long, device=embeddings.device)
    return {"prompt_embeds": embeddings, "prompt_attention_mask": mask}


def hunyuan_text(scale: Scale, random: Random) -> Arguments:
    """The same, and the embedding of the prompt as a whole."""
    return {**masked_text(scale, random), "pooled_prompt_embeds": random(1, scale.pooled_width)}
