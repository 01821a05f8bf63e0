"""The search behind a trained policy's plans: which steps to compute, and the weights."""

import math
from collections.abc import Callable

import numpy as np
import torch

from foresight.plan import HISTORY
from foresight.planner import refine, shortest_paths
from foresight.policies.base import Generation
from foresight.policies.multistep import LONGEST_RUN, TINY, carry_out, local_energies
from foresight.policies.network import ReuseModel, config_features
from foresight.policies.reaction import Reaction, gains_after

UNEVEN = 3  # longer runs of skipped steps than so many average ones are not considered


class PlanSearch:
    """Searches plans for generations of a model; for each schedule once.

    Steps are chosen for the mean prompt, weights for the one at hand, and both for errors that last
    (`Reaction.cautious`).

    Args:
        model: The trained network.
    """

    def __init__(self, model: ReuseModel) -> None:
        self.model = model
        self._known: dict[tuple[str | float | bytes, ...], np.ndarray] = {}

    def plan(
        self, generation: Generation, count: int, history: int = HISTORY
    ) -> tuple[np.ndarray, np.ndarray]:
        """Which steps to compute (S,), and weights (S, HISTORY).

        Args:
            generation: What to plan for.
            count: How many steps to compute.
            history: How many predictions may be kept.
        """
        return self._along(self.path(generation), generation, count, history)

    def log_damage(self, generation: Generation, count: int, history: int = HISTORY) -> float:
        """Log energy to be expected in the final latents, of such a plan."""
        path = self.path(generation)
        computed, weights = self._along(path, generation, count, history)
        facts = path, generation.solver, self.reaction(generation)
        (energy,) = carry_out(*facts, computed[None], weights[None])[1]
        return math.log(energy + TINY)

    def _along(
        self, path: np.ndarray, generation: Generation, count: int, history: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """The plan, given the predictions to be expected."""
        computed = self.steps(generation, count, history)
        facts = path, generation.solver, self.reaction(generation).cautious()
        return computed, carry_out(*facts, computed[None], history=history)[0][0]

    def reaction(self, generation: Generation) -> Reaction:
        """How the model answers latents that are off, at each step of a generation."""
        return self.model.reaction.at(generation.sigmas, generation.config.guidance_scale)

    def path(self, generation: Generation) -> np.ndarray:
        """Predictions to be expected of a generation, (S, R) coordinates.

        Those of the mean prompt, each change from step to step as much larger or smaller as the
        network says of this one.
        """
        prompt = torch.from_numpy(np.asarray(generation.prompt_embedding)).float()
        features = torch.tensor([config_features(generation.config)])
        return stretched(
            self.mean_path(generation), self.model, generation.sigmas, prompt[None], features
        )

    def mean_path(self, generation: Generation) -> np.ndarray:
        """The same of the mean prompt."""
        return self._once(
            generation,
            "path",
            lambda: self.model.path(
                np.asarray(generation.sigmas),
                generation.solver,
                generation.config.guidance_scale,
            ),
        )

    def steps(self, generation: Generation, count: int, history: int = HISTORY) -> np.ndarray:
        """Which steps to compute, bool (S,); for the mean prompt."""

        def search() -> np.ndarray:
            reaction = self.reaction(generation).cautious()
            facts = self.mean_path(generation), generation.solver, reaction
            return refine(
                self.start(generation, count, history),
                lambda computed: carry_out(*facts, computed, history=history)[1],
            )

        return self._once(generation, f"{count} steps from {history}", search)

    def start(self, generation: Generation, count: int, history: int = HISTORY) -> np.ndarray:
        """Where the search for steps starts, bool (S,): least summed damage of their runs."""
        solver, path = generation.solver, self.mean_path(generation)
        gains = gains_after(solver, self.reaction(generation))
        longest = max(LONGEST_RUN, UNEVEN * len(path) // count)
        damage = local_energies(path, solver, longest, history=history) * gains
        *_, (_, computed) = shortest_paths(damage, count)
        return computed

    def _once(
        self, generation: Generation, what: str, make: Callable[[], np.ndarray]
    ) -> np.ndarray:
        """What is the same for all generations of one solver, schedule and guidance scale."""
        solver = generation.solver
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
