"""The recipe of the embedded models: render clips, train a VAE, then the DiT with its text encoder.

`make reference` runs it: `python -m foresight.models.reference`. Every stage resumes where it was
stopped; the learning rate is constant and decays over the last fifth of `--steps`, so that a
finished run can be carried on by asking for more steps. Runs on any device.
"""

import argparse
import dataclasses
import sys
from pathlib import Path

import torch
from diffusers import DiffusionPipeline

from foresight.config import load_prompts
from foresight.models.autoencoder import train_vae
from foresight.models.card import write_card
from foresight.models.denoiser import train_denoiser
from foresight.models.recipes import RECIPES
from foresight.pipeline import load_pipeline


def main() -> None:
    """Train what is not trained yet, and export the pipeline."""
    args = parse_arguments()
    recipe = RECIPES[args.model]
    chosen = {f.name: getattr(args, f.name, None) for f in dataclasses.fields(recipe)}
    recipe = dataclasses.replace(
        recipe, **{name: value for name, value in chosen.items() if value is not None}
    )
    output = args.output or Path("checkpoints") / args.model
    torch.manual_seed(args.seed)
    recipe.work.mkdir(parents=True, exist_ok=True)
    device = torch.device(args.device)
    pipe = DiffusionPipeline.from_pretrained(args.start) if args.start else recipe.build()
    objective = recipe.objective(pipe)  # what it draws must not depend on the VAE's steps
    train_vae(
        pipe.vae,
        recipe.work,
        steps=recipe.vae_steps,
        clip_steps=recipe.vae_clip_steps,
        batch_size=16,
        num_frames=recipe.num_frames,
        device=device,
    )
    train_denoiser(
        pipe,
        objective,
        recipe.work,
        steps=recipe.steps,
        image_steps=recipe.image_steps,
        batch_size=args.batch_size,
        num_frames=recipe.num_frames,
        pool_parts=args.pool_parts,
        part_size=args.part_size,
        device=device,
    )
    pipe.to("cpu")
    pipe.vae.to(memory_format=torch.contiguous_format)
    pipe.save_pretrained(output)
    exported = load_pipeline(output, device="cpu")
    facts = {**dataclasses.asdict(recipe), "name": args.model, "batch_size": args.batch_size}
    write_card(exported, output, load_prompts(args.prompts), **facts)
    sys.stdout.write(f"model: {output}\n")


def parse_arguments() -> argparse.Namespace:
    """The command line; what is left out comes from the model's recipe."""
    parser = argparse.ArgumentParser(
        description=__doc__, prog="python -m foresight.models.reference"
    )
    parser.add_argument("--model", choices=list(RECIPES), default="tiny-latte")
    parser.add_argument("--output", type=Path, help="default: checkpoints/MODEL")
    parser.add_argument("--work", type=Path, help="state of the stages")
    parser.add_argument(
        "--start",
        type=Path,
        help="pipeline folder to start from; with --vae-steps 0 its VAE stays as it is",
    )
    parser.add_argument(
        "--prompts", type=Path, default=Path("data/prompts/test.txt"), help="for the card"
    )
    parser.add_argument("--vae-steps", type=int)
    parser.add_argument(
        "--vae-clip-steps", type=int, help="of them, the last ones on clips (for a 3D VAE)"
    )
    parser.add_argument("--steps", type=int, help="denoiser steps")
    parser.add_argument("--image-steps", type=int, help="of them, the first ones on single frames")
    parser.add_argument("--batch-size", type=int, default=12)
    parser.add_argument("--pool-parts", type=int, default=24, help="parts of the clip pool")
    parser.add_argument("--part-size", type=int, default=500, help="clips per part")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
