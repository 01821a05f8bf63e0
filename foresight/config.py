"""What a user writes in files: generation configurations and prompts. Imports no torch."""

import dataclasses
import json
from pathlib import Path


class UserError(ValueError):
    """Something the user can mend; command lines print it as one line and exit with 2."""


@dataclasses.dataclass(frozen=True)
class GenerationConfig:
    """One video configuration: pixels, frames, denoising steps and CFG scale."""

    height: int
    width: int
    num_frames: int
    num_inference_steps: int
    guidance_scale: float

    def __str__(self) -> str:
        size = f"{self.height}x{self.width}, {self.num_frames} frames"
        return f"{size}, {self.num_inference_steps} steps, guidance {self.guidance_scale:g}"


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A prompt and the category it was filed under (empty where the file has no headings)."""

    text: str
    category: str = ""


def load_configs(path: str | Path) -> list[GenerationConfig]:
    """Read a JSON list of objects whose keys are the fields of `GenerationConfig`.

    Raises:
        UserError: If the file is missing, is not such a list, or a value is out of range.
    """
    try:
        entries = json.loads(Path(path).read_text("utf-8"))
    except OSError as error:
        raise UserError(f"cannot read the configurations file {path}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); write a list of configurations") from error
    names = [field.name for field in dataclasses.fields(GenerationConfig)]
    if not isinstance(entries, list) or not entries:
        raise UserError(f"{path} must hold a non-empty list of objects with the keys {names}")
    configs = []
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict) or sorted(entry) != sorted(names):
            raise UserError(f"{path}: entry {number} must have exactly the keys {names}")
        for name, value in entry.items():
            whole = name != "guidance_scale"
            if (
                isinstance(value, bool)
                or not isinstance(value, int if whole else int | float)
                or value <= 0
            ):
                kind = "a whole number" if whole else "a number"
                raise UserError(
                    f"{path}: entry {number}: `{name}` must be {kind} above 0, not {value!r}"
                )
        configs.append(
            GenerationConfig(**{**entry, "guidance_scale": float(entry["guidance_scale"])})
        )
    return configs


def load_prompts(path: str | Path) -> list[Prompt]:
    """Read one prompt per line; a line `# name` files the prompts below it under a category.

    Raises:
        UserError: If the file is missing or holds no prompt.
    """
    try:
        lines = Path(path).read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the prompts file {path}: {error}") from error
    prompts, category = [], ""
    for line in map(str.strip, lines):
        if line.startswith("#"):
            category = line.lstrip("#").strip()
        elif line:
            prompts.append(Prompt(line, category))
    if not prompts:
        raise UserError(f"{path} holds no prompt; write one prompt per line")
    return prompts
