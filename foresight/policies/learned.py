"""The trained policy: predicts risks before the first step and plans for a budget."""

import bisect
import contextlib
import copy
import dataclasses
import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from foresight.config import UserError
from foresight.fingerprint import fingerprint
from foresight.plan import Plan
from foresight.planner import refine, shortest_paths, steps_for_speedup
from foresight.policies.base import Generation, Policy
from foresight.policies.multistep import TINY, carry_out, local_energies
from foresight.policies.network import ReuseModel, config_features
from foresight.policies.promise import QualityPromise
from foresight.policies.reaction import Reaction, gains_after
from foresight.solver import Solver, euler_solver


class LearnedPolicy(Policy):
    """Plans from the predictions of a `ReuseModel`.

    Args:
        model: The trained network.
        fingerprint: Of the model it was trained on.
        costs: `block_seconds` (N,), `overhead_seconds` and `skip_seconds` per step, as profiled.
        promise: What roll-outs showed of quality; None if there were none.
        name: What the comparison calls it.

    Attributes:
        speedup: The denoising speed-up to plan for.
        quality: The PSNR to plan for instead, in dB; None if a speed-up is wanted.
    """

    def __init__(
        self,
        model: ReuseModel,
        fingerprint: dict[str, Any],
        costs: dict[str, Any],
        promise: QualityPromise | None = None,
        *,
        name: str = "learned",
    ) -> None:
        self.model, self.fingerprint, self.costs = model.eval(), fingerprint, costs
        self.promise, self.name = promise, name
        self.speedup = 2.0
        self.quality: float | None = None
        self._confidence = 0.9
        self._known: dict[tuple[str | float | bytes, ...], np.ndarray] = {}

    @property
    def setting(self) -> str:
        if self.quality is not None:
            return f"quality={self.quality:g},confidence={self._confidence:g}"
        return f"speedup={self.speedup:g}"

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "LearnedPolicy":
        """Load a policy folder or hub id (`config.json` and `model.safetensors`).

        Raises:
            UserError: If it is no policy, or damaged.
        """
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import (
            HfHubHTTPError,
            HFValidationError,
            LocalEntryNotFoundError,
        )
        from safetensors import SafetensorError

        try:
            local = Path(folder) / "config.json"
            path = (
                local
                if Path(folder).is_dir()
                else Path(hf_hub_download(str(folder), "config.json"))
            )
            stored = json.loads(path.read_text("utf-8"))["foresight"]
            facts, costs = stored["fingerprint"], stored["costs"]
            promise = QualityPromise(**stored["promise"]) if stored.get("promise") else None
            with contextlib.redirect_stdout(None):  # huggingface_hub prints what it loads
                model = ReuseModel.from_pretrained(str(folder), strict=True)
        except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
            raise UserError(
                f"policy {folder}: no such folder, and not to be had from the hub"
            ) from error
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"policy {folder} is no trained policy, or damaged ({reason})"
            ) from error
        return cls(model, facts, costs, promise, name=Path(folder).resolve().name)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `model.safetensors`, then `config.json`, which marks a whole folder."""
        folder = Path(folder)
        self.model.save_pretrained(folder)
        path = folder / "config.json"
        config = json.loads(path.read_text("utf-8"))
        config["foresight"] = {
            "fingerprint": self.fingerprint,
            "costs": self.costs,
            "promise": None if self.promise is None else dataclasses.asdict(self.promise),
        }
        partial = folder / ".config.json.partial"
        partial.write_text(json.dumps(config, indent=1), "utf-8")
        partial.replace(path)

    def digest(self) -> str:
        """A name for its weights."""
        digest = hashlib.sha256()
        for value in self.model.state_dict().values():
            digest.update(value.numpy().tobytes())
        return digest.hexdigest()[:16]

    def at(self, speedup: float) -> "LearnedPolicy":
        if not 1 <= speedup <= 20:
            raise UserError(f"--speedup {speedup:g} is out of range; give a value from 1 to 20")
        other = copy.copy(self)
        other.speedup, other.quality = speedup, None
        return other

    def reaching(self, quality: float, confidence: float = 0.9) -> "LearnedPolicy":
        if not 1 <= quality <= 100:
            raise UserError(f"--quality {quality:g} is out of range; give a PSNR from 1 to 100 dB")
        if not 0 < confidence < 1:
            raise UserError(f"--confidence {confidence:g} must lie between 0 and 1")
        if self.promise is None:
            raise UserError(
                f"policy {self.name} was trained on too few roll-outs to promise a quality; "
                "profile with --rollouts 4 or more and train again"
            )
        self.promise.highest_log_damage(quality, confidence)
        other = copy.copy(self)
        other.quality, other._confidence = quality, confidence
        return other

    def calibrated(
        self, num_steps: int, full_seconds: float, skipped_seconds: float
    ) -> "LearnedPolicy":
        """The policy with the times of this machine.

        Args:
            num_steps: S of both runs.
            full_seconds: Denoising time with every step computed.
            skipped_seconds: Denoising time with only the first step computed.

        Raises:
            UserError: If S is less than 2: nothing was skipped.
        """
        if num_steps < 2:
            raise UserError("calibrate with two steps or more, such as num_inference_steps=4")
        computed = max((full_seconds - skipped_seconds) / (num_steps - 1), 1e-9)
        blocks = np.asarray(self.costs["block_seconds"])
        other = copy.copy(self)
        other.costs = {
            "block_seconds": (blocks * computed / blocks.sum()).tolist(),
            "overhead_seconds": max(full_seconds / num_steps - computed, 0.0),
            "skip_seconds": 0.0,
        }
        return other

    def check(self, pipe: Any) -> None:
        found = fingerprint(pipe)
        differ = [
            key for key in self.fingerprint if key != "id" and found[key] != self.fingerprint[key]
        ]
        if differ:
            facts = ", ".join(
                f"{key}: {self.fingerprint[key]} there, {found[key]} here" for key in differ[:2]
            )
            raise UserError(
                f"policy {self.name} was trained for another model ({facts}); train one for this"
            )

    def begin(self, generation: Generation) -> Plan:
        if self.quality is None:
            count = self._affordable(generation.num_steps)
        else:
            assert self.promise is not None
            most = self.promise.highest_log_damage(self.quality, self._confidence)
            counts = range(1, generation.num_steps)  # beyond is all computed, which leaves nothing
            count = 1 + bisect.bisect_left(
                counts, -most, key=lambda count: -math.log(self._best(generation, count)[2] + TINY)
            )
        computed, weights, _ = self._best(generation, count)
        return Plan.of_output(computed, weights, generation.num_blocks)

    def reaction(self, generation: Generation) -> Reaction:
        """How the model answers latents that are off, at each step of a generation."""
        return self.model.reaction.at(generation.sigmas, generation.config.guidance_scale)

    def _best(self, generation: Generation, count: int) -> tuple[np.ndarray, np.ndarray, float]:
        """Which steps to compute (S,), weights (S, HISTORY) and the energy of what they leave.

        Steps are searched for the mean prompt; for another one, where the search began may be
        better still.
        """
        choices = np.stack([self._steps(generation, count), self._starts(generation)[count - 1]])
        facts = self.path(generation), _solver(generation), self.reaction(generation)
        weights, energies = carry_out(*facts, choices)
        best = int(energies.argmin())
        return choices[best], weights[best], float(energies[best])

    def path(self, generation: Generation) -> np.ndarray:
        """Predictions to be expected of a generation, (S, R) coordinates.

        Those of the mean prompt, each change from step to step as much larger or smaller as the
        network says of this one.
        """
        prompt = torch.from_numpy(np.asarray(generation.prompt_embedding)).float()
        features = torch.tensor([config_features(generation.config)])
        return stretched(
            self._mean_path(generation), self.model, generation.sigmas, prompt[None], features
        )

    def _affordable(self, steps: int) -> int:
        """How many steps come closest to the speed-up."""
        allowed = steps_for_speedup(
            self.speedup,
            steps,
            float(np.sum(self.costs["block_seconds"])),
            self.costs["overhead_seconds"],
            self.costs["skip_seconds"],
        )
        return min(steps, max(1, int(allowed + 0.5)))

    def _steps(self, generation: Generation, count: int) -> np.ndarray:
        """Which steps to compute, bool (S,), given how many; for the mean prompt."""

        def search() -> np.ndarray:
            facts = self._mean_path(generation), _solver(generation), self.reaction(generation)
            return refine(
                self._starts(generation)[count - 1],
                lambda computed: carry_out(*facts, computed)[1],
            )

        return self._once(generation, f"steps {count}", search)

    def _starts(self, generation: Generation) -> np.ndarray:
        """Good choices of 1, 2, ... S steps: (S, S), those of least summed damage of their runs."""

        def plan() -> np.ndarray:
            solver, path = _solver(generation), self._mean_path(generation)
            gains = gains_after(solver, self.reaction(generation))
            damage = local_energies(path, solver, len(path)) * gains
            return np.stack([computed for _, computed in shortest_paths(damage, len(path))])

        return self._once(generation, "starts", plan)

    def _mean_path(self, generation: Generation) -> np.ndarray:
        return self._once(
            generation,
            "path",
            lambda: self.model.path(
                np.asarray(generation.sigmas),
                _solver(generation),
                generation.config.guidance_scale,
            ),
        )

    def _once(
        self, generation: Generation, what: str, make: Callable[[], np.ndarray]
    ) -> np.ndarray:
        """What is the same for all generations of one solver, schedule and guidance scale."""
        solver = _solver(generation)
        parts = np.asarray(generation.sigmas), solver.response, solver.decay
        guidance = generation.config.guidance_scale
        key = (what, guidance, solver.known, *(part.tobytes() for part in parts))
        if key not in self._known:
            self._known[key] = make()
        return self._known[key]


def stretched(
    path: np.ndarray,
    model: ReuseModel,
    sigmas: np.ndarray,
    prompt: torch.Tensor,
    features: torch.Tensor,
) -> np.ndarray:
    """A mean path (S, R) as one generation goes along it.

    Args:
        path: Of the mean prompt.
        model: Says how much faster or slower this one goes.
        sigmas: (S,).
        prompt: (1, D) its embedding.
        features: (1, C) its configuration's.
    """
    levels = torch.from_numpy(np.asarray(sigmas)).float()
    with torch.no_grad():
        pace = model.log_pace(levels, prompt, features).double().numpy()
    steps = np.diff(path, axis=0, prepend=0) * np.exp(pace / 2)[:, None]
    return np.cumsum(steps, axis=0)


def _solver(generation: Generation) -> Solver:
    return generation.solver or euler_solver(generation.sigmas)
