"""The trained network as a policy folder."""

import shutil

import numpy as np

from foresight.policies.learned import LearnedPolicy
from foresight.policies.network import ReuseModel
from policy_training.card import Results, model_card
from policy_training.config import TrainConfig
from policy_training.generations import ProfiledGeneration, fingerprint_of


def measured_costs(generations: list[ProfiledGeneration]) -> dict[str, list[float] | float]:
    """Mean seconds of each block, and of what every step takes even if the model is not run.

    What the model does outside its blocks is spread over them: it runs when they run.
    """
    traces = [generation.trace for generation in generations]
    blocks = np.mean([trace["block_seconds"] for trace in traces], axis=0)
    overhead = float(np.mean([trace["overhead_seconds"] for trace in traces]))
    idle = min(overhead, float(np.mean([trace["skip_seconds"] for trace in traces])))
    return {
        "block_seconds": (blocks * (1 + (overhead - idle) / blocks.sum())).tolist(),
        "overhead_seconds": idle,
        "skip_seconds": 0.0,
    }


def export(
    config: TrainConfig,
    model: ReuseModel,
    train: list[ProfiledGeneration],
    held_out: list[ProfiledGeneration],
    results: Results,
) -> None:
    """Write `config.json`, `model.safetensors` and `README.md` to `config.output`.

    The configuration goes in last, so that a folder with one is whole.
    """
    fingerprint = fingerprint_of(train[0].trace)
    staging = config.output / "training" / "export"
    staging.mkdir(exist_ok=True)
    costs = measured_costs(train + held_out)
    LearnedPolicy(model, fingerprint, costs, results.promise).save_pretrained(staging)
    card = model_card(config, fingerprint, train, held_out, results)
    card.save(staging / "README.md")
    for name in ("model.safetensors", "README.md", "config.json"):
        (staging / name).replace(config.output / name)
    shutil.rmtree(staging)
