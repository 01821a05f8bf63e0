"""The networks of the ablations: trained as the policy is, with one thing changed."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scipy.stats import spearmanr

from benchmarks.ablation_variants import FULL
from foresight.policies.learned import LearnedPolicy
from policy_training.config import TrainConfig
from policy_training.damage import damages
from policy_training.dataset import TraceData
from policy_training.export import measured_costs
from policy_training.generations import (
    ProfiledGeneration,
    configuration,
    fingerprint_of,
    load_generations,
    make_buckets,
    split_by_prompt,
)
from policy_training.reaction import fit_reaction
from policy_training.rollouts import gather_rollouts
from policy_training.train import claim, fit

SIZES = (5, 10, 20, 50, 100, 200, 500)  # profiled generations


@dataclasses.dataclass(frozen=True)
class Training:
    """One network to train.

    Attributes:
        meaning: In a few words.
        generations: What it learns from.
        use: Of the prompt, one of `PROMPT_USES`.
    """

    meaning: str
    generations: list[ProfiledGeneration]
    use: str = "prompt"

    def run(self, folder: Path, **settings: Any) -> LearnedPolicy:
        """Train; a run that was interrupted goes on, one that is finished is read.

        Args:
            folder: Of this network alone.
            settings: Of `TrainConfig`.

        Raises:
            UserError: If the generations have changed since, or are too few.
        """
        config = TrainConfig([folder], folder, ablate=False, **settings)
        sides = split_by_prompt(self.generations, config.validation_fraction, config.seed)
        if not claim(config, self.generations):
            data = TraceData(*sides, config, self.use)
            module = fit(config, data, self.use, fit_reaction(data.train_rollouts))
            facts = fingerprint_of(self.generations[0].trace)
            costs = measured_costs(self.generations)
            LearnedPolicy(module.model, facts, costs).save_pretrained(folder)
        return LearnedPolicy.from_pretrained(folder)


def trainings(dirs: Sequence[Path], more: Sequence[Path] = ()) -> dict[str, Training]:
    """The networks that these trace sets allow, by name.

    Args:
        dirs: Trace sets; the first holds sampled roll-outs, others on-policy rounds.
        more: Trace sets that only the largest networks learn from.

    Raises:
        UserError: If a trace set is unusable.
    """
    generations = load_generations(dirs)
    found = {
        FULL: Training("**the policy**", generations),
        "without prompt": Training("trained without the prompt", generations, "without prompt"),
        "shuffled prompt": Training(
            "trained with the prompts of others", generations, "shuffled prompt"
        ),
    }
    if len(dirs) > 1:
        sampled = load_generations(dirs[:1])
        found["no on-policy round"] = Training("trained on sampled roll-outs only", sampled)
    turns = in_turns(load_generations([*dirs, *more]) if more else generations)
    for size in (size for size in SIZES if size <= len(turns) and size != len(generations)):
        meaning = f"trained on the first {size} profiled generations, with their roll-outs"
        found[f"{size} generations"] = Training(meaning, turns[:size])
    return found


def foreseen(
    policy: LearnedPolicy, trained_on: Sequence[Path], others: Sequence[Path]
) -> tuple[int, float]:
    """How well a policy predicts the final error of roll-outs.

    Args:
        policy: What predicts it.
        trained_on: Its trace sets; roll-outs of their prompts do not count.
        others: Trace sets with the roll-outs.

    Returns:
        How many roll-outs there are, and the Spearman correlation of what was predicted and what
        was measured.

    Raises:
        UserError: If a trace set is unusable.
    """
    known = {generation.trace["prompt"] for generation in load_generations(trained_on)}
    fresh = [each for each in load_generations(others) if each.trace["prompt"] not in known]
    measured, predicted = damages(policy.model, gather_rollouts(make_buckets(fresh)))
    return len(measured), float(spearmanr(measured, predicted).statistic)


def in_turns(generations: Sequence[ProfiledGeneration]) -> list[ProfiledGeneration]:
    """The generations in their order, but with configurations taking turns."""
    count: dict[Any, int] = {}
    turns = []
    for generation in generations:
        config = configuration(generation.trace)
        count[config] = count.get(config, 0) + 1
        turns.append(count[config])
    order = sorted(range(len(turns)), key=turns.__getitem__)
    return [generations[place] for place in order]
