"""Captioned clips that the project renders itself: what the embedded models are trained on.

A `Scene` says what is seen (one or two moving shapes, a background, a camera); `caption` puts it in
words; `render` draws it with signed distance functions. Scenes range from still to hectic.
"""

import dataclasses
import math

import numpy as np

COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 180, 60),
    "blue": (40, 80, 230),
    "yellow": (245, 215, 40),
    "white": (245, 245, 245),
    "purple": (150, 50, 190),
    "orange": (245, 140, 30),
}
SHAPES = ("circle", "square", "triangle", "star", "ring", "cross")
MOTIONS = (
    "stays still",
    "moves left",
    "moves right",
    "moves up",
    "moves down",
    "spins",
    "bounces",
    "orbits",
    "grows",
    "shrinks",
    "shakes",
    "blinks",
)
SPEEDS = ("slowly", "", "quickly")
BACKGROUNDS = (
    "a black background",
    "a gray background",
    "a blue sky",
    "a sunset",
    "a green meadow",
    "gray stripes",
    "a brown checkerboard",
    "a starry night",
    "rolling waves",
)
CAMERAS = (
    "",
    "the camera pans left",
    "the camera pans right",
    "the camera zooms in",
    "the camera zooms out",
    "the camera shakes",
)
_RATE = {"slowly": 0.5, "": 1.0, "quickly": 2.0}
_SIDE = 0.47  # of two items, the first is left of the middle by this, the second right
_REACH = 0.6  # of what a lone item and its camera move, so that two stay in view and apart


@dataclasses.dataclass(frozen=True)
class Item:
    """A moving shape."""

    colour: str
    shape: str
    motion: str
    speed: str = ""

    def __str__(self) -> str:
        article = "an" if self.colour[0] in "aeiou" else "a"
        return " ".join(filter(None, (article, self.colour, self.shape, self.motion, self.speed)))


@dataclasses.dataclass(frozen=True)
class Scene:
    """One or two items over a background, seen by a camera."""

    items: tuple[Item, ...]
    background: str
    camera: str = ""


def caption(scene: Scene) -> str:
    """The scene in words, as the embedded models read it."""
    text = " and ".join(map(str, scene.items)) + f" over {scene.background}"
    return f"{text}, {scene.camera}" if scene.camera else text


def sample_scene(rng: np.random.Generator) -> Scene:
    """Draw a scene: six in ten have two items, which is learned last; four in ten a camera."""
    colours = rng.permutation(list(COLOURS))

    def item(colour: str) -> Item:
        shape, motion = str(rng.choice(SHAPES)), str(rng.choice(MOTIONS))
        if motion == "spins" and shape in ("circle", "ring"):  # nobody would see it
            motion = "orbits"
        speed = "" if motion == "stays still" else str(rng.choice(SPEEDS))
        return Item(str(colour), shape, motion, speed)

    count = 2 if rng.random() < 0.6 else 1
    camera = str(rng.choice(CAMERAS[1:])) if rng.random() < 0.4 else ""
    return Scene(tuple(item(c) for c in colours[:count]), str(rng.choice(BACKGROUNDS)), camera)


def render(
    scene: Scene,
    rng: np.random.Generator,
    *,
    num_frames: int = 16,
    height: int = 64,
    width: int = 64,
) -> np.ndarray:
    """Draw a scene; what the caption leaves open (place, size, phase) comes from `rng`.

    Returns:
        uint8 frames of shape (num_frames, height, width, 3). One unit of length is half the height.
    """
    time = np.linspace(0.0, 1.0, num_frames)[:, None, None]
    rows = (np.arange(height) + 0.5) / height * 2 - 1
    cols = ((np.arange(width) + 0.5) / width * 2 - 1) * (width / height)
    y, x = np.meshgrid(rows, cols, indexing="ij")
    sides, reach = ([0.0], 1.0) if len(scene.items) == 1 else ([-_SIDE, _SIDE], _REACH)
    x, y = _camera(scene.camera, rng, x[None], y[None], time, reach)
    frames = _background(scene.background, rng, x, y, time)
    for item, centre in zip(scene.items, sides, strict=True):
        frames = _draw(frames, item, rng, x, y, time, centre, reach, 2.0 / height, width / height)
    return np.clip(frames, 0, 255).astype(np.uint8)


def _camera(camera: str, rng: np.random.Generator, x, y, time, reach):  # noqa: ANN001, ANN202
    travel = (time - 0.5) * 0.9 * reach
    if "pans" in camera:
        x = x + (-1 if camera.endswith("left") else 1) * travel
    elif "zooms" in camera:
        scale = np.exp((-1 if camera.endswith("in") else 1) * travel)
        x, y = x * scale, y * scale
    elif "shakes" in camera:
        jolt = rng.uniform(-0.14, 0.14, size=(2, time.shape[0], 1, 1))
        x, y = x + jolt[0], y + jolt[1]
    one = np.ones_like(time)
    return x * one, y * one


def _background(name: str, rng: np.random.Generator, x, y, time):  # noqa: ANN001, ANN202
    def blend(weight, one, two):  # noqa: ANN001, ANN202
        weight = np.clip(weight, 0, 1)[..., None]
        return np.asarray(one, float) * (1 - weight) + np.asarray(two, float) * weight

    phase = rng.uniform(0, 2 * math.pi)
    if name == "a black background":
        return blend(0 * x, (8, 8, 12), (8, 8, 12))
    if name == "a gray background":
        return blend(0 * x, (128, 128, 128), (128, 128, 128))
    if name == "a blue sky":
        return blend(y * 0.5 + 0.5, (90, 160, 245), (205, 230, 250))
    if name == "a sunset":
        return blend(y * 0.5 + 0.5, (70, 30, 110), (255, 130, 60))
    if name == "a green meadow":
        blades = 0.5 + 0.5 * np.sin(14 * x + phase + 2 * np.sin(3 * y)) * np.sin(9 * y + phase)
        return blend(blades, (62, 132, 52), (88, 158, 68))
    if name == "gray stripes":
        return blend(0.5 + 3 * np.sin(7 * (x + y) + phase), (88, 88, 93), (142, 142, 147))
    if name == "a brown checkerboard":
        return blend(
            0.5 + 8 * np.sin(6.3 * x + phase) * np.sin(6.3 * y + phase),
            (104, 70, 44),
            (150, 112, 74),
        )
    if name == "a starry night":
        stars = rng.uniform(-1.8, 1.8, size=(24, 2))
        glow = sum(np.exp(-((x - a) ** 2 + (y - b) ** 2) / 0.004) for a, b in stars)
        return blend(glow, (12, 14, 45), (190, 190, 175))
    if name == "rolling waves":
        swell = np.sin(6 * y + 2.5 * np.sin(2 * x + phase) + 4 * math.pi * time)
        return blend(0.5 + 0.5 * swell, (25, 85, 150), (65, 145, 190))
    raise ValueError(f"unknown background {name!r}; choose from {BACKGROUNDS}")


def _draw(frames, item, rng, x, y, time, centre, reach, pixel, aspect):  # noqa: ANN001, ANN202
    rate = _RATE[item.speed]
    size = rng.uniform(0.5, 0.6) * (0.76 if centre else 1.0)
    cx = centre + rng.uniform(-0.08, 0.08) * aspect + 0 * time
    cy = rng.uniform(-0.1, 0.1) + 0 * time
    angle = 0 * time
    scale, alpha = 1 + 0 * time, 1.0
    travel = (time - 0.5) * 0.9 * reach * rate
    match item.motion:
        case "moves left":
            cx = cx - travel
        case "moves right":
            cx = cx + travel
        case "moves up":
            cy = cy - travel
        case "moves down":
            cy = cy + travel
        case "spins":
            angle = time * math.pi * rate
        case "bounces":
            cy = 0.4 - 0.75 * np.abs(np.sin((time * rate * 1.5 + rng.uniform(0, 1)) * math.pi))
        case "orbits":
            turn = 2 * math.pi * (time * rate * 0.75 + rng.uniform(0, 1))
            cx, cy = cx + 0.4 * reach * np.cos(turn), cy + 0.4 * reach * np.sin(turn)
        case "grows" | "shrinks":
            sign = 1 if item.motion == "grows" else -1
            scale = np.exp(sign * (time - 0.5) * reach * rate**0.7)
        case "shakes":
            jolt = rng.uniform(-0.13, 0.13, size=(2, time.shape[0], 1, 1)) * rate**0.5
            cx, cy = cx + jolt[0], cy + jolt[1]
        case "blinks":
            alpha = (np.sin(2 * math.pi * (time * rate * 2 + rng.uniform(0, 1))) > -0.3)[..., None]
    dx, dy = (x - cx) / (size * scale), (y - cy) / (size * scale)
    dx, dy = np.cos(angle) * dx + np.sin(angle) * dy, np.cos(angle) * dy - np.sin(angle) * dx
    distance = _distance(item.shape, dx, dy) * size * scale
    cover = np.clip(0.5 - distance / pixel, 0, 1)[..., None] * alpha
    return frames * (1 - cover) + cover * np.asarray(COLOURS[item.colour], float)


def _distance(shape: str, x, y):  # noqa: ANN001, ANN202
    """Approximate signed distance to a shape of radius one (negative inside)."""
    radius, theta = np.hypot(x, y), np.arctan2(x, -y)
    if shape == "circle":
        return radius - 0.9
    if shape == "square":
        return np.maximum(np.abs(x), np.abs(y)) - 0.8
    if shape == "ring":
        return np.abs(radius - 0.7) - 0.24
    if shape == "cross":
        bar = np.maximum(np.abs(x) - 0.95, np.abs(y) - 0.3)
        return np.minimum(bar, np.maximum(np.abs(y) - 0.95, np.abs(x) - 0.3))
    if shape == "triangle":
        third = np.abs((theta + math.pi / 3) % (2 * math.pi / 3) - math.pi / 3)
        return radius * np.cos(math.pi / 3 - third) - 0.55
    if shape == "star":
        fifth = np.abs((theta + math.pi / 5) % (2 * math.pi / 5) - math.pi / 5)
        return (radius * np.cos(fifth - 0.0) - 1.05 + radius * np.sin(fifth) * 1.55) * 0.55
    raise ValueError(f"unknown shape {shape!r}; choose from {SHAPES}")
