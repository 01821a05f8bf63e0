"""The recipe of the embedded model: render clips, train a VAE, then the DiT with its text encoder.

`make reference` runs it: `python -m foresight.models.reference`. Every stage resumes where it was
stopped; the learning rate is constant and decays over the last fifth of `--steps`, so that a
finished run can be carried on by asking for more steps. Runs on any device.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from diffusers import LattePipeline
from PIL import Image, ImageDraw

from foresight.config import GenerationConfig, load_prompts
from foresight.models.architecture import build_pipeline
from foresight.models.autoencoder import train_vae
from foresight.models.denoiser import train_denoiser
from foresight.pipeline import generate

CARD = """---
library_name: diffusers
pipeline_tag: text-to-video
license: apache-2.0
---

# tiny-latte

A small text-to-video model of the Latte family (6 spatial and 6 temporal blocks, DDIM, T5 encoder,
{parameters:.1f} M parameters), trained on clips that the project renders itself: shapes that move
over backgrounds, seen by a moving camera. It exists so that reuse can be studied without a
download or a GPU.

    from diffusers import LattePipeline
    pipe = LattePipeline.from_pretrained("checkpoints/tiny-latte")
    video = pipe("a red circle moves left over a blue sky", height=64, width=64, video_length=16,
                 num_inference_steps=30, guidance_scale=4.0).frames[0]

It knows the words of `foresight/models/clips.py`, 64x64 and 64x96 pixels, 16 frames.

Trained by `make reference`: {vae_steps} VAE steps, then {steps} denoiser steps of {batch_size}
clips.

## Twelve test prompts

Four of sixteen frames each; 30 steps, guidance 4, seed 0, prompts from `data/prompts/test.txt`.

![contact sheet](contact-sheet.png)
"""


def write_card(pipe: LattePipeline, folder: Path, prompts: Path, args: argparse.Namespace) -> None:
    """Write the model card, with a contact sheet of 12 prompts spread over a file."""
    known = load_prompts(prompts)
    shown = [known[(2 * n + 1) * len(known) // 24] for n in range(12)]
    config = GenerationConfig(64, 64, 16, 30, 4.0)
    scale, label = 2, 26
    sheet = Image.new("RGB", (2 * (4 * 64 * scale + 8), 6 * (64 * scale + label)), "white")
    draw = ImageDraw.Draw(sheet)
    for number, prompt in enumerate(shown):
        frames = generate(pipe, prompt.text, config, seed=0).frames[[0, 5, 10, 15]]
        strip = Image.fromarray(np.concatenate(list(frames), axis=1))
        x, y = number % 2 * (4 * 64 * scale + 8), number // 2 * (64 * scale + label)
        draw.text((x + 2, y + 8), prompt.text, fill="black")
        sheet.paste(
            strip.resize((4 * 64 * scale, 64 * scale), Image.Resampling.BICUBIC), (x, y + label)
        )
    sheet.save(folder / "contact-sheet.png")
    parts = (pipe.transformer, pipe.vae, pipe.text_encoder)
    count = sum(p.numel() for part in parts for p in part.parameters()) / 1e6
    facts = {"vae_steps": args.vae_steps, "steps": args.steps, "batch_size": args.batch_size}
    (folder / "README.md").write_text(CARD.format(parameters=count, **facts), "utf-8")


def main() -> None:
    """Train what is not trained yet, and export the pipeline."""
    parser = argparse.ArgumentParser(
        description=__doc__, prog="python -m foresight.models.reference"
    )
    parser.add_argument("--output", type=Path, default=Path("checkpoints/tiny-latte"))
    parser.add_argument(
        "--work", type=Path, default=Path("runs/reference"), help="state of the stages"
    )
    parser.add_argument(
        "--start",
        type=Path,
        help="pipeline folder to start from; with --vae-steps 0 its VAE stays as it is",
    )
    parser.add_argument(
        "--prompts", type=Path, default=Path("data/prompts/test.txt"), help="for the card"
    )
    parser.add_argument("--vae-steps", type=int, default=1300)
    parser.add_argument("--steps", type=int, default=1400, help="denoiser steps")
    parser.add_argument("--batch-size", type=int, default=24)
    parser.add_argument("--pool-parts", type=int, default=9, help="parts of the clip pool")
    parser.add_argument("--part-size", type=int, default=500, help="clips per part")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    args.work.mkdir(parents=True, exist_ok=True)
    device = torch.device(args.device)
    pipe = LattePipeline.from_pretrained(args.start) if args.start else build_pipeline()
    train_vae(pipe.vae, args.work, steps=args.vae_steps, batch_size=8, device=device)
    train_denoiser(
        pipe,
        args.work,
        steps=args.steps,
        batch_size=args.batch_size,
        pool_parts=args.pool_parts,
        part_size=args.part_size,
        device=device,
    )
    pipe.to("cpu", torch.float32)
    pipe.vae.to(memory_format=torch.contiguous_format)
    pipe.save_pretrained(args.output)
    pipe.set_progress_bar_config(disable=True)
    write_card(pipe, args.output, args.prompts, args)
    sys.stdout.write(f"model: {args.output}\n")


if __name__ == "__main__":
    main()
