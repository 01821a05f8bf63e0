"""The trained policy: a folder on disk, the dials, and a plan before the first step."""

import bisect
import contextlib
import copy
import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from foresight.config import UserError
from foresight.fingerprint import fingerprint
from foresight.plan import HISTORY, Plan
from foresight.planner import steps_for_speedup
from foresight.policies.base import Generation, Policy
from foresight.policies.network import ReuseModel
from foresight.policies.promise import QualityPromise
from foresight.policies.search import PlanSearch


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
        max_cache_bytes: The most that plans keep from step to step; None if that does not matter.
        fine_tuned: Whether weights may differ from those it was trained on, by a fine-tune or LoRA;
            what it promises of quality was learned on the latter.
        search: Finds the plans.
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
        self.search = PlanSearch(model)
        self.speedup = 2.0
        self.quality: float | None = None
        self.max_cache_bytes: int | None = None
        self.fine_tuned = False
        self._confidence = 0.9

    @property
    def setting(self) -> str:
        wanted = f"speedup={self.speedup:g}"
        if self.quality is not None:
            wanted = f"quality={self.quality:g},confidence={self._confidence:g}"
        bound = self.max_cache_bytes
        return wanted if bound is None else f"{wanted},max_cache_bytes={bound}"

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

    def within(self, max_cache_bytes: int) -> "LearnedPolicy":
        other = copy.copy(self)
        other.max_cache_bytes = max_cache_bytes
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
        free = {"id", "weights_hash"} if self.fine_tuned else {"id"}
        known = self.fingerprint
        differ = [key for key in known if key not in free and found[key] != known[key]]
        if differ == ["weights_hash"]:
            raise UserError(
                f"policy {self.name} was trained for other weights of this model; train one for "
                "these, or, if they were fine-tuned from those, put [fine_tuned=true] behind its "
                "folder"
            )
        if differ:
            facts = ", ".join(
                f"{key}: {self.fingerprint[key]} there, {found[key]} here" for key in differ[:2]
            )
            raise UserError(
                f"policy {self.name} was trained for another model ({facts}); train one for this"
            )

    def begin(self, generation: Generation) -> Plan:
        search, history = self.search, self._history(generation)
        if self.quality is None:
            count = self._affordable(generation.num_steps)
        else:
            assert self.promise is not None
            most = self.promise.highest_log_damage(self.quality, self._confidence)
            counts = range(1, generation.num_steps)  # beyond is all computed, which leaves nothing
            count = 1 + bisect.bisect_left(
                counts, -most, key=lambda count: -search.log_damage(generation, count, history)
            )
        computed, weights = search.plan(generation, count, history)
        return Plan.of_output(computed, weights, generation.num_blocks)

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

    def _history(self, generation: Generation) -> int:
        """How many predictions plans may keep."""
        if self.max_cache_bytes is None or not generation.prediction_bytes:
            return HISTORY
        allowed = self.max_cache_bytes // generation.prediction_bytes
        if allowed < 1:
            raise UserError(
                f"max_cache_bytes={self.max_cache_bytes} is too little: a prediction of this size "
                f"takes {generation.prediction_bytes}, and one is kept at least"
            )
        return min(allowed, HISTORY)
