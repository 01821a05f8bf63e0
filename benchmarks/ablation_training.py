"""The networks of the ablations: trained as the policy is, with one thing changed."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from foresight.policies.learned import LearnedPolicy
from foresight.traces import TraceSet
from policy_training.config import TrainConfig
from policy_training.dataset import TraceData
from policy_training.export import measured_costs
from policy_training.generations import (
    configuration,
    fingerprint_of,
    load_generations,
    split_by_prompt,
)
from policy_training.train import claim, fit, train

SIZES = (5, 10, 20)  # profiled generations


@dataclasses.dataclass(frozen=True)
class Training:
    """One network to train.

    Attributes:
        config: Its settings.
        use: Of the prompt, one of `PROMPT_USES`.
        taken_from: The trace set that `config.dirs` takes a part of, and how many generations.
    """

    config: TrainConfig
    use: str = "prompt"
    taken_from: tuple[Path, int] | None = None

    def run(self) -> LearnedPolicy:
        """Train; a run that was interrupted goes on, one that is finished is read.

        Raises:
            UserError: If a trace set is unusable, or has changed since.
        """
        if self.taken_from is not None:
            take_part(*self.taken_from, self.config.dirs[0])
        if self.use == "shuffled prompt":
            return self._shuffled()
        return LearnedPolicy.from_pretrained(train(self.config))

    def _shuffled(self) -> LearnedPolicy:
        """Not exported: nobody wants it as a policy."""
        generations = load_generations(self.config.dirs)
        claim(self.config, generations)
        sides = split_by_prompt(generations, self.config.validation_fraction, self.config.seed)
        module = fit(self.config, TraceData(*sides, self.config, self.use), self.use)
        facts = fingerprint_of(generations[0].trace)
        return LearnedPolicy(module.model, facts, measured_costs(generations))


def trainings(dirs: Sequence[Path], work: Path, **settings: Any) -> dict[str, Training]:
    """The networks that these trace sets allow, by variant.

    Args:
        dirs: Trace sets; the first holds sampled roll-outs, others on-policy rounds.
        work: Folder of the ablations.
        settings: Of `TrainConfig`, for all.
    """

    def config(name: str, dirs: Sequence[Path], **changes: Any) -> TrainConfig:
        shared = {"ablate": False, **settings}
        return TrainConfig(list(dirs), work / "policies" / name, **{**shared, **changes})

    full = config("full", dirs)
    found = {
        "full": Training(full),
        "seed": Training(config("seed", dirs, seed=full.seed + 1)),
        "without-prompt": Training(config("without-prompt", dirs, prompt=False)),
        "shuffled-prompt": Training(config("shuffled-prompt", dirs), "shuffled prompt"),
    }
    if len(dirs) > 1:
        found["off-policy"] = Training(config("off-policy", dirs[:1]))
    profiled = len(TraceSet.open(dirs[0]).traces)
    for size in SIZES:
        if size < profiled:
            name = f"generations-{size}"
            part = config(name, [work / "traces" / name])
            found[name] = Training(part, taken_from=(dirs[0], size))
    return found


def take_part(source: Path, size: int, folder: Path) -> None:
    """Copy some generations of a trace set, evenly spread over it, with their roll-outs."""
    whole = TraceSet.open(source)
    rows, rollouts = whole.traces, whole.rollouts
    taken = [rows[number * len(rows) // size] for number in range(size)]
    settings = {
        **whole.settings,
        "num_generations": size,
        "prompts": sorted({row["prompt"] for row in taken}),
        "configs": sorted({str(configuration(row)) for row in taken}),
    }
    part = TraceSet.create(folder, settings)
    for number, row in enumerate(taken):
        if not part.has(number):
            own = [one for one in rollouts if one["generation_id"] == row["generation_id"]]
            part.add(number, row, own)
