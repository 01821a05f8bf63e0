"""The embedded models' cards, with a contact sheet of what they paint."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from foresight.config import GenerationConfig, Prompt
from foresight.pipeline import generate

CARD = """---
library_name: diffusers
pipeline_tag: text-to-video
license: apache-2.0
---

# {name}

{about}
{parameters:.1f} M parameters, trained on clips that the project renders itself: shapes that move
over backgrounds, seen by a moving camera. It exists so that reuse can be studied without a
download or a GPU.

    from diffusers import {pipeline}
    pipe = {pipeline}.from_pretrained("checkpoints/{name}")
    video = pipe("a red circle moves left over a blue sky", height=64, width=64,
                 {arguments},
                 num_inference_steps=30, guidance_scale=4.0).frames[0]

It knows the words of `foresight/models/clips.py`, 64x64 and 64x96 pixels, {num_frames} frames.

Trained by `python -m foresight.models.reference --model {name}`: {vae_steps} VAE steps, then
{steps} denoiser steps of {batch_size} clips, the first {image_steps} of them on single frames.

## Twelve test prompts

Four of {num_frames} frames each; 30 steps, guidance 4, seed 0.

![contact sheet](contact-sheet.png)
"""


def write_card(
    pipe: Any, folder: Path, prompts: list[Prompt], *, num_frames: int, **facts: Any
) -> None:
    """Write the model card, with a contact sheet of 12 prompts spread over a list of them."""
    shown = [prompts[(2 * n + 1) * len(prompts) // 24] for n in range(12)]
    contact_sheet(pipe, [prompt.text for prompt in shown], num_frames).save(
        folder / "contact-sheet.png"
    )
    parts = (pipe.transformer, pipe.vae, pipe.text_encoder)
    count = sum(p.numel() for part in parts for p in part.parameters()) / 1e6
    text = CARD.format(
        pipeline=type(pipe).__name__, parameters=count, num_frames=num_frames, **facts
    )
    (folder / "README.md").write_text(text, "utf-8")


def contact_sheet(pipe: Any, prompts: list[str], num_frames: int) -> Image.Image:
    """Four frames of a video per prompt, twice enlarged, in two columns."""
    config = GenerationConfig(64, 64, num_frames, 30, 4.0)
    scale, label = 2, 26
    picks = np.linspace(0, num_frames - 1, 4).astype(int)
    rows = -(-len(prompts) // 2)
    sheet = Image.new("RGB", (2 * (4 * 64 * scale + 8), rows * (64 * scale + label)), "white")
    draw = ImageDraw.Draw(sheet)
    for number, prompt in enumerate(prompts):
        frames = generate(pipe, prompt, config, seed=0).frames[picks]
        strip = Image.fromarray(np.concatenate(list(frames), axis=1))
        x, y = number % 2 * (4 * 64 * scale + 8), number // 2 * (64 * scale + label)
        draw.text((x + 2, y + 8), prompt, fill="black")
        sheet.paste(
            strip.resize((4 * 64 * scale, 64 * scale), Image.Resampling.BICUBIC), (x, y + label)
        )
    return sheet
