"""What a network says of roll-outs, beside what they left."""

import numpy as np
import torch
from torch import Tensor

from foresight.policies.multistep import carry_out
from foresight.policies.network import ReuseModel
from foresight.policies.search import stretched
from policy_training.rollouts import Rollouts


@torch.no_grad()
def predicted_damage(model: ReuseModel, rollouts: Rollouts) -> Tensor:
    """Log error to be expected, (R,): from predicted outputs, before anything is run."""
    sigmas, solver, guidance = rollouts.sigmas.numpy(), rollouts.solver, rollouts.guidance_scale
    mean = model.path(sigmas, solver, guidance)
    reaction = model.reaction.at(sigmas, guidance)
    found = []
    for which, computed in enumerate(rollouts.computed):
        here = slice(which, which + 1)
        path = stretched(mean, model, sigmas, rollouts.embedding[here], rollouts.features[here])
        weights = rollouts.weights[here]
        found.append(carry_out(path, solver, reaction, computed[None], weights)[1])
    return torch.from_numpy(np.concatenate(found)).clamp(min=1e-30).log()


def damages(model: ReuseModel, groups: list[Rollouts]) -> tuple[np.ndarray, np.ndarray]:
    """Measured and predicted log error of roll-outs, both (R,)."""
    if not groups:
        return np.zeros(0), np.zeros(0)
    predicted = torch.cat([predicted_damage(model, group) for group in groups])
    return torch.cat([group.log_final_error for group in groups]).numpy(), predicted.numpy()
