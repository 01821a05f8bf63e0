"""Trace sets: what the profiler logs, as Parquet that `datasets` opens.

A folder with `data/` (one generation a row and a file), `rollouts/` (the roll-outs of each), a card
and the settings it was made with. A file appears only when it is complete, so a set can be read and
carried on at any moment.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from foresight.config import UserError

_VECTOR, _MATRIX = pa.list_(pa.float32()), pa.list_(pa.list_(pa.float32()))
_STACK = pa.list_(_MATRIX)
TRACE_SCHEMA = pa.schema(
    {
        "generation_id": pa.string(),
        "model": pa.string(),
        "prompt": pa.string(),
        "category": pa.string(),
        "prompt_embedding": _VECTOR,
        "seed": pa.int64(),
        "height": pa.int32(),
        "width": pa.int32(),
        "num_frames": pa.int32(),
        "num_inference_steps": pa.int32(),
        "guidance_scale": pa.float32(),
        "scheduler": pa.string(),
        "timesteps": _VECTOR,
        "sigmas": _VECTOR,
        "response": _MATRIX,
        "decay": _VECTOR,
        "gram": _STACK,
        "group_names": pa.list_(pa.string()),
        "group_gram": _STACK,
        "output_norm": _MATRIX,
        "block_seconds": _VECTOR,
        "overhead_seconds": pa.float32(),
        "skip_seconds": pa.float32(),
        "text_seconds": pa.float32(),
        "denoise_seconds": pa.float32(),
        "vae_seconds": pa.float32(),
        "profile_seconds": pa.float32(),
    }
)
ROLLOUT_SCHEMA = pa.schema(
    {
        "generation_id": pa.string(),
        "prompt": pa.string(),
        "kind": pa.string(),
        "plan": pa.list_(pa.list_(pa.int8())),
        "coefficients": _MATRIX,
        "weights": _MATRIX,
        "at_output": pa.bool_(),
        "compute_fraction": pa.float32(),
        "final_error": pa.float32(),
        "psnr": pa.float32(),
        "reaction": _MATRIX,
    }
)
_CARD = """---
configs:
- config_name: default
  data_files: data/*.parquet
- config_name: rollouts
  data_files: rollouts/*.parquet
tags: [foresight-traces, video, diffusion]
---

# Foresight trace set

How the blocks of `{transformer}` ({num_blocks} blocks, weights `{weights_hash}`) change along the
denoising trajectory: {generations} generations of {prompts} prompts in {configs} configuration(s).

`gram[b, i, j]` is the inner product of block b's residuals at steps i and j, estimated from
sketches of {sketch_width} numbers, divided by the mean squared norm of the block's output.
`group_gram` is the same for the whole stack's summed residual and for the model's output.
The `rollouts` configuration holds plans (0 compute, 1 reuse, 2 forecast) that were run on these
generations, and the error they left; `reaction[s]` says how far latents and prediction were off at
step s: energy, inner product, energy.

    datasets.load_dataset("parquet", data_dir=THIS_FOLDER)
"""


class TraceSet:
    """A folder of traces. `create` starts or continues one, `open` reads one.

    Attributes:
        folder: Where it lies.
        settings: What it was made with: model, prompts, configurations, sketch, roll-outs, seed.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.folder, self.settings = folder, settings

    @classmethod
    def create(cls, folder: str | Path, settings: dict[str, Any]) -> "TraceSet":
        """Start a set, or continue the one that lies there; nothing is written before `add`.

        Raises:
            UserError: If a set with other settings lies there; names what differs.
        """
        folder = Path(folder)
        stored = folder / "trace_set.json"
        settings = json.loads(json.dumps(settings))
        if stored.exists():
            earlier = cls._settings(folder)
            changed = [key for key in settings if settings[key] != earlier.get(key)]
            if changed:
                raise UserError(
                    f"{folder} was made with other settings ({', '.join(changed)} differ); "
                    "give --output another folder, or delete this one"
                )
            return cls(folder, earlier)
        if folder.exists() and any(
            path for path in folder.iterdir() if not path.name.startswith(".")
        ):
            raise UserError(f"--output {folder} is not empty and no trace set; give another folder")
        return cls(folder, settings)

    @classmethod
    def open(cls, folder: str | Path) -> "TraceSet":
        """Open a set for reading.

        Raises:
            UserError: If there is none, or it holds no generation.
        """
        folder = Path(folder)
        if not (folder / "trace_set.json").exists():
            raise UserError(
                f"{folder} is no trace set; make one with `foresight profile --output {folder}`"
            )
        found = cls(folder, cls._settings(folder))
        if not found._files("data"):
            raise UserError(f"{folder} holds no generation; run `foresight profile` on it again")
        return found

    @property
    def traces(self) -> list[dict[str, Any]]:
        """The generations, lists as numpy arrays.

        Raises:
            UserError: If a file is damaged or holds NaN.
        """
        return self._rows("data")

    @property
    def rollouts(self) -> list[dict[str, Any]]:
        """The roll-outs, lists as numpy arrays. Raises as `traces`."""
        return self._rows("rollouts")

    def has(self, number: int) -> bool:
        """Whether generation `number` is complete."""
        return self._trace_path(number).exists()

    def add(self, number: int, trace: dict[str, Any], rollouts: list[dict[str, Any]]) -> None:
        """Write one generation; its trace last, so that its presence means it is complete."""
        self._found()
        if rollouts:
            path = self.folder / "rollouts" / f"rollouts-{number:05d}.parquet"
            _write_rows(path, rollouts, ROLLOUT_SCHEMA)
        _write_rows(self._trace_path(number), [trace], TRACE_SCHEMA)

    def _found(self) -> None:
        """Write settings and card, if they are not there yet."""
        stored, settings = self.folder / "trace_set.json", self.settings
        if stored.exists():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        model = settings["model"]
        card = _CARD.format(
            **{key: model[key] for key in ("transformer", "num_blocks", "weights_hash")},
            generations=settings["num_generations"],
            prompts=len(settings["prompts"]),
            configs=len(settings["configs"]),
            sketch_width=settings["sketch_width"],
        )
        write_atomically(self.folder / "README.md", card.encode())
        write_atomically(stored, json.dumps(settings, indent=1).encode())

    def _trace_path(self, number: int) -> Path:
        total = self.settings["num_generations"]
        return self.folder / "data" / f"train-{number:05d}-of-{total:05d}.parquet"

    def _files(self, part: str) -> list[Path]:
        return sorted((self.folder / part).glob("*.parquet"))

    @staticmethod
    def _settings(folder: Path) -> dict[str, Any]:
        path = folder / "trace_set.json"
        try:
            return json.loads(path.read_text("utf-8"))
        except ValueError as error:
            raise UserError(f"{path} is damaged ({error}); profile into a new folder") from error

    def _rows(self, part: str) -> list[dict[str, Any]]:
        rows = []
        for path in self._files(part):
            try:
                found = pq.read_table(path).to_pylist()
            except (pa.ArrowException, OSError) as error:
                raise UserError(
                    f"{path} is damaged ({error}); delete it and profile again"
                ) from error
            for row in found:
                rows.append({key: _to_array(value) for key, value in row.items()})
                for key, value in rows[-1].items():
                    if isinstance(value, float | np.ndarray) and _has_nan(value):
                        raise UserError(
                            f"{path}: `{key}` holds NaN or infinity; delete it and profile again"
                        )
        return rows


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(content)
    partial.replace(path)


def _write_rows(path: Path, rows: list[dict[str, Any]], schema: pa.Schema) -> None:
    plain = [
        {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in row.items()} for row in rows
    ]
    path.parent.mkdir(exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    pq.write_table(pa.Table.from_pylist(plain, schema=schema), partial, compression="zstd")
    partial.replace(path)


def _to_array(value: Any) -> Any:
    is_numbers = isinstance(value, list) and value and not isinstance(value[0], str)
    return np.asarray(value, dtype=np.float64) if is_numbers else value


def _has_nan(value: Any) -> bool:
    array = np.asarray(value)
    return array.dtype.kind == "f" and not np.isfinite(array).all()
