"""What the card reports: the networks and the baselines on the same held-out queries."""

import numpy as np
from scipy.stats import spearmanr

from policy_training.baselines import Score, fit_baselines, score
from policy_training.card import Results
from policy_training.config import TrainConfig
from policy_training.damage import damages
from policy_training.dataset import TraceData
from policy_training.labels import safe_to_reuse
from policy_training.module import ReuseTraining, predict, predictions
from policy_training.promise import quality_promise

BASELINE_BATCHES = 8
MIN_ROLLOUTS = 5


def measure(
    config: TrainConfig,
    fitted: dict[str, tuple[ReuseTraining, TraceData]],
    reaction_seconds: float,
) -> Results:
    """Score the networks, the policy's own first, and the baselines beside its ablations.

    Args:
        config: Settings of the run.
        fitted: For each use of the prompt its network and data; the policy's own comes first.
        reaction_seconds: What fitting the reaction took.
    """
    scores = [_score_network(config, use, *pair) for use, pair in fitted.items()]
    module, data = next(iter(fitted.values()))
    held_out = data.held_out_sample()
    if config.ablate:
        train = data.training_sample(BASELINE_BATCHES)
        scores += fit_baselines(train, held_out, config.tolerance, config.seed)
    measured, predicted = damages(module.model, data.held_out_rollouts)
    enough = len(measured) >= MIN_ROLLOUTS
    return Results(
        scores=scores,
        num_queries=len(held_out.entity),
        safe_share=float(safe_to_reuse(held_out.moments, config.tolerance).float().mean()),
        rollout_spearman=float(spearmanr(measured, predicted).statistic) if enough else np.nan,
        num_rollouts=len(measured),
        pace_trust=module.model.pace_trust.item(),
        promise=quality_promise(module, data),
        training_seconds=reaction_seconds + sum(each.seconds for each, _ in fitted.values()),
    )


def _score_network(config: TrainConfig, use: str, module: ReuseTraining, data: TraceData) -> Score:
    held_out = data.held_out_sample()
    name = use if use != "prompt" else "this policy"
    said = predictions(predict(module, held_out))
    return score(name, held_out, said, config.tolerance)
