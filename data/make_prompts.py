"""Writes the prompt files: `.venv/bin/python data/make_prompts.py` gives the committed ones again.

Prompts are drawn from the caption grammar of the embedded model (`foresight.models.clips`). The
splits differ by category, not by chance: some motions, camera moves and two-object scenes appear in
one split only. Each split goes from still to hectic.
"""

import argparse
import dataclasses
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

from foresight.models import clips

PLAIN = ("a black background", "a gray background", "a blue sky", "a sunset", "a green meadow")
PATTERNED = ("gray stripes", "a brown checkerboard")
PANS = ("the camera pans left", "the camera pans right")
ALL_SPEEDS = clips.SPEEDS
UNTURNABLE = ("circle", "ring")  # they look the same while they spin


@dataclasses.dataclass(frozen=True)
class Category:
    """What the scenes of one category have in common; every field lists the words to draw from."""

    name: str
    motions: tuple[str, ...]
    speeds: tuple[str, ...] = ALL_SPEEDS
    backgrounds: tuple[str, ...] = clips.BACKGROUNDS
    cameras: tuple[str, ...] = ("",)
    num_items: int = 1


@dataclasses.dataclass(frozen=True)
class Split:
    """The categories of one prompt file, and how many prompts each has."""

    categories: tuple[Category, ...]
    prompts_per_category: int


SPLITS = {
    "train": Split(
        prompts_per_category=18,
        categories=(
            Category("still", ("stays still",), backgrounds=PLAIN),
            Category("still-patterned", ("stays still",), backgrounds=PATTERNED),
            Category("drift", ("moves left", "moves right")),
            Category("rise-and-fall", ("moves up", "moves down")),
            Category("spin", ("spins",)),
            Category("pan", ("stays still",), cameras=PANS),
            Category("zoom-in", ("stays still",), cameras=("the camera zooms in",)),
            Category("blink", ("blinks",)),
            Category("shake", ("shakes",)),
            Category("drift-and-pan", ("moves left", "moves right"), ("", "quickly"), cameras=PANS),
            Category("spin-and-zoom-in", ("spins",), cameras=("the camera zooms in",)),
            Category("shake-and-pan", ("shakes",), ("", "quickly"), cameras=PANS),
        ),
    ),
    "validate": Split(
        prompts_per_category=12,
        categories=(
            Category("still-night", ("stays still",), backgrounds=("a starry night",)),
            Category("grow", ("grows",)),
            Category("orbit", ("orbits",)),
            Category("orbit-and-pan", ("orbits",), ("", "quickly"), cameras=PANS),
        ),
    ),
    "test": Split(
        prompts_per_category=8,
        categories=(
            Category("still-waves", ("stays still",), backgrounds=("rolling waves",)),
            Category("shrink", ("shrinks",)),
            Category("bounce", ("bounces",)),
            Category(
                "camera-shake",
                ("stays still", "moves left", "moves up", "spins"),
                cameras=("the camera shakes",),
            ),
            Category(
                "two-objects-calm",
                ("stays still", "moves left", "moves right", "moves up", "moves down"),
                ("slowly",),
                num_items=2,
            ),
            Category("zoom-out", ("stays still", "moves down"), cameras=("the camera zooms out",)),
            Category(
                "two-objects-hectic",
                ("bounces", "shakes", "moves left", "moves right"),
                ("quickly",),
                cameras=("", *PANS, "the camera shakes"),
                num_items=2,
            ),
            Category(
                "bounce-and-zoom-out",
                ("bounces",),
                ("", "quickly"),
                cameras=("the camera zooms out",),
            ),
        ),
    ),
}


def deal(rng: random.Random, words: Sequence[str]) -> Iterator[str]:
    """Deal `words` in random order, again and again, so that all come up equally often."""
    while True:
        # Python promises the sequence of random(), not what shuffle() makes of it.
        yield from sorted(words, key=lambda _: rng.random())


def draw_prompts(category: Category, count: int) -> list[str]:
    """Draw `count` different prompts: the same ones whatever the other categories are."""
    rng = random.Random(category.name)
    colours, shapes = deal(rng, tuple(clips.COLOURS)), deal(rng, clips.SHAPES)
    motions, speeds = deal(rng, category.motions), deal(rng, category.speeds)
    backgrounds, cameras = deal(rng, category.backgrounds), deal(rng, category.cameras)

    def draw_item(taken: tuple[str, ...]) -> clips.Item:
        motion = next(motions)
        return clips.Item(
            next(colour for colour in colours if colour not in taken),
            next(s for s in shapes if motion != "spins" or s not in UNTURNABLE),
            motion,
            "" if motion == "stays still" else next(speeds),
        )

    prompts: dict[str, None] = {}
    while len(prompts) < count:
        items: tuple[clips.Item, ...] = ()
        for _ in range(category.num_items):
            items += (draw_item(tuple(item.colour for item in items)),)
        prompts[clips.caption(clips.Scene(items, next(backgrounds), next(cameras)))] = None
    return list(prompts)


def write_prompts(output: Path) -> list[Path]:
    """Write one file per split into the folder `output` and return their paths."""
    output.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, split in SPLITS.items():
        sections = [
            "\n".join([f"# {category.name}", *draw_prompts(category, split.prompts_per_category)])
            for category in split.categories
        ]
        paths.append(output / f"{name}.txt")
        paths[-1].write_text("\n\n".join(sections) + "\n", encoding="utf-8")
    return paths


def main() -> None:
    """Parse the command line and write the files."""
    parser = argparse.ArgumentParser(description="Write train.txt, validate.txt and test.txt.")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path(__file__).parent / "prompts",
        help="folder to write to (default: the committed one)",
    )
    write_prompts(parser.parse_args().output)


if __name__ == "__main__":
    main()
