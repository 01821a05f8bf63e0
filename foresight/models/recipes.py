"""What the training of the embedded models differs in."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from foresight.models import architecture, wan
from foresight.models.objectives import FlowMatchingLoss, Objective, VelocityLoss


@dataclasses.dataclass(frozen=True)
class Recipe:
    """An embedded model, and how it is trained.

    Attributes:
        about: What it is, for its card.
        arguments: Those of its pipeline that its card must show.
        build: Makes the untrained pipeline.
        objective: What its denoiser is trained to predict.
        num_frames: Of a training clip.
        work: Folder of the stages' state.
        vae_steps: Steps of the VAE; `vae_clip_steps` of them, the last ones, on clips.
        steps: Steps of the denoiser; `image_steps` of them, the first ones, on single frames.
    """

    about: str
    arguments: str
    build: Callable[[], Any]
    objective: Callable[[Any], Objective]
    num_frames: int
    work: Path
    vae_steps: int
    vae_clip_steps: int
    steps: int
    image_steps: int


RECIPES = {
    "tiny-latte": Recipe(
        about="A small text-to-video model of the Latte family: 6 spatial and 6 temporal blocks,\n"
        "2D VAE, DDIM, T5 encoder.",
        arguments="video_length=16",
        build=architecture.build_pipeline,
        objective=VelocityLoss,
        num_frames=architecture.NUM_FRAMES,
        work=Path("runs/reference"),
        vae_steps=3000,
        vae_clip_steps=0,
        steps=12000,
        image_steps=5000,
    ),
    "tiny-wan": Recipe(
        about="A small text-to-video model of the Wan family: 12 blocks of full 3D attention,\n"
        "causal 3D VAE, UniPC flow matching, UMT5 encoder, a forward pass per CFG branch.",
        arguments="num_frames=17, max_sequence_length=32",
        build=wan.build_pipeline,
        objective=FlowMatchingLoss,
        num_frames=wan.NUM_FRAMES,
        work=Path("runs/tiny-wan"),
        vae_steps=1600,
        vae_clip_steps=600,
        steps=5200,
        image_steps=1800,
    ),
}
