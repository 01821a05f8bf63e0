"""The trained part of a policy: risks of reuse and forecast, and what errors do to the video.

It starts from what the traces say on average, the mean Gram matrix of every entity over noise
levels (a kernel: any step count reads it by interpolation), and learns what prompt, configuration
and the steps themselves change about that.

An entity is the model's output (0) or the residual r of one block (1 + index). For a target step s,
the last computed step a and the one before, p, the network predicts

    coefficient   beta of the forecast `r[a] + beta * (r[a] - r[p])`
    log_reuse     log of ||r[s] - r[a]||^2, relative as in a trace's Gram matrix
    log_forecast  log of what the forecast leaves
    safe          log odds that the change stays within a tolerance of ||r[s]||

Plans are made at the output: `paths` says what predictions to expect on average, and so how best to
stand in for what is skipped; the predicted change from step to step, how much faster or slower this
prompt moves than others; and `reaction`, how the model answers what is left.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import nn

from foresight.config import GenerationConfig
from foresight.policies.paths import MeanPaths
from foresight.policies.reaction import ReactionModel
from foresight.solver import Solver

NUM_CONFIG_FEATURES = 5
PROMPT_NOISE = 25.0  # over the root of their number: few prompts are soon known by heart
OUTPUT = 0  # the entity that plans are made at


def config_features(config: GenerationConfig) -> list[float]:
    """What the network sees of a configuration, in octaves where sizes are meant."""
    return [
        math.log2(config.height * config.width),
        math.log2(config.height / config.width),
        math.log2(config.num_frames),
        math.log2(config.num_inference_steps),
        math.log2(max(config.guidance_scale, 1.0)),
    ]


class ReuseModel(nn.Module, PyTorchModelHubMixin, library_name="foresight"):
    """Predicts what reuse costs.

    Args:
        num_blocks: N.
        prompt_width: D of the prompt embedding.
        num_levels: M, noise levels at which the kernel is known.
        profiled_steps: Of each of `paths`.
        tolerance: Of "safe": a change of at most this share of the residual's own norm.
        hidden: Width of the hidden layers.
        prompt_rank: Numbers that the prompt is reduced to.
    """

    prompt_mean: torch.Tensor
    prompt_scale: torch.Tensor
    config_mean: torch.Tensor
    config_scale: torch.Tensor
    grid: torch.Tensor
    kernel: torch.Tensor
    pace_trust: torch.Tensor

    def __init__(
        self,
        num_blocks: int,
        prompt_width: int,
        num_levels: int,
        profiled_steps: Sequence[int],
        tolerance: float = 0.2,
        hidden: int = 96,
        prompt_rank: int = 4,
    ) -> None:
        super().__init__()
        self.register_buffer("grid", torch.linspace(1, 0, num_levels))
        self.register_buffer("kernel", torch.eye(num_levels).repeat(num_blocks + 1, 1, 1))
        self.register_buffer("prompt_mean", torch.zeros(prompt_width))
        self.register_buffer("prompt_scale", torch.ones(prompt_width))
        self.register_buffer("config_mean", torch.zeros(NUM_CONFIG_FEATURES))
        self.register_buffer("config_scale", torch.ones(NUM_CONFIG_FEATURES))
        self.prompt = nn.Sequential(nn.Linear(prompt_width, prompt_rank), nn.Tanh())
        self.prompt_noise = 0.0  # in training, in standard deviations
        self.entity = nn.Embedding(num_blocks + 1, 16)
        self.log_tolerance = 2 * math.log(tolerance)
        width = 16 + prompt_rank + NUM_CONFIG_FEATURES + 19
        answers = nn.Linear(hidden, 4)
        nn.init.zeros_(answers.weight)  # training starts from the kernel's answers
        nn.init.zeros_(answers.bias)
        self.trunk = nn.Sequential(
            nn.Linear(width, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), answers
        )
        self.register_buffer("pace_trust", torch.ones((), dtype=torch.float64))
        self.paths, self.reaction = MeanPaths(profiled_steps), ReactionModel()
        nn.init.normal_(self.entity.weight, std=0.3)

    def fit_inputs(self, prompts: torch.Tensor, configs: torch.Tensor) -> None:
        """Take the means and scales of prompt embeddings (G, D) and config features (G, 5).

        What does not vary in training is ignored afterwards.
        """
        self.prompt_noise = PROMPT_NOISE / len(prompts.unique(dim=0)) ** 0.5
        for name, values in (("prompt", prompts), ("config", configs)):
            spread = values.std(dim=0, unbiased=False)
            getattr(self, f"{name}_mean").copy_(values.mean(dim=0))
            getattr(self, f"{name}_scale").copy_(
                torch.where(spread > 1e-4, 1 / spread.clamp(min=1e-4), 0.0)
            )

    def fit_kernel(self, grid: torch.Tensor, grams: torch.Tensor) -> None:
        """Take mean inner products over the noise levels of a schedule.

        Args:
            grid: (M,) noise levels, falling.
            grams: (N + 1, M, M) of every entity with itself.
        """
        self.grid.copy_(grid)
        self.kernel.copy_(grams)

    def _place(self, levels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The level of the grid after each of some (any shape), and how near it is: 0 to 1."""
        place = torch.searchsorted(-self.grid, -levels.contiguous()).clamp(1, len(self.grid) - 1)
        above, below = self.grid[place - 1], self.grid[place]
        share = ((above - levels) / (above - below).clamp(min=1e-6)).clamp(0, 1)
        return place, share.double()

    def _read_kernel(self, entity: torch.Tensor, levels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Change, best coefficient, what it leaves, and own energy of residuals, (Q,) each.

        Residuals are taken as linear between two levels of the grid, so that every answer is one of
        real vectors.
        """
        place, share = self._place(levels)
        nodes = torch.stack([place - 1, place], dim=-1).flatten(1)  # (Q, 6)
        weights = torch.stack([1 - share, share], dim=-1)  # (Q, 3, 2)
        block = self.kernel[entity[:, None, None], nodes[:, :, None], nodes[:, None, :]].double()
        spread = torch.zeros(len(levels), 3, 6, dtype=torch.float64, device=levels.device)
        for row in range(3):
            spread[:, row, 2 * row : 2 * row + 2] = weights[:, row]
        inner = spread @ block @ spread.mT  # (Q, 3, 3) over target, latest, previous
        (ss, sa, sp), (_, aa, ap), (_, _, pp) = (row.unbind(-1) for row in inner.unbind(1))
        floor = 1e-6 * ss.clamp(min=1e-12)
        change = torch.maximum(ss + aa - 2 * sa, floor)
        cross, motion = sa - sp - aa + ap, aa + pp - 2 * ap
        known = motion > floor
        coefficient = torch.where(known, cross / motion.clamp(min=1e-12), 0.0)
        left = torch.maximum(change - coefficient * cross * known, 1e-3 * change)
        answers = change.log(), coefficient.clamp(-1, 8), left.log(), ss.clamp(min=1e-12).log()
        return tuple(answer.float() for answer in answers)

    def context(self, prompts: torch.Tensor, configs: torch.Tensor) -> torch.Tensor:
        """Encode prompt embeddings (G, D) and config features (G, 5) once a generation: (G, C)."""
        prompts = ((prompts - self.prompt_mean) * self.prompt_scale).clamp(-3, 3)
        if self.training:
            prompts = prompts + self.prompt_noise * torch.randn_like(prompts)
        configs = ((configs - self.config_mean) * self.config_scale).clamp(-2, 2)
        return torch.cat([self.prompt(prompts), configs], dim=-1)

    def forward(
        self, entity: torch.Tensor, levels: torch.Tensor, context: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Predict for Q queries.

        Args:
            entity: int64 (Q,).
            levels: (Q, 3) sigmas of target s, latest a, previous p; p = a where there is none.
            context: (Q, C).

        Returns:
            `coefficient`, `log_reuse`, `log_forecast`, `safe`, each (Q,).
        """
        target, latest, previous = levels.unbind(-1)
        gap, before = latest - target, previous - latest
        ratio = gap / before.clamp(min=1e-4)
        has_previous = (before > 1e-6).float()
        ratio = torch.where(before > 1e-6, ratio, 0.0)
        known_reuse, known_coefficient, known_left, known_own = self._read_kernel(entity, levels)
        margin = self.log_tolerance + known_own - known_reuse
        extra = torch.stack(
            [
                (gap.clamp(min=1e-4)).log() / 3,
                (before.clamp(min=1e-4)).log() / 3 * has_previous,
                ratio.clamp(max=8).log1p(),
                has_previous,
                gap * 4,
                before * 4 * has_previous,
                known_reuse / 4,
                known_coefficient,
                (known_left - known_reuse) / 2,
                margin / 4,
            ],
            dim=-1,
        )
        inputs = torch.cat([self.entity(entity), context, _waves(target), extra], dim=-1)
        correction, reuse, left, safe = self.trunk(inputs).unbind(-1)
        coefficient = known_coefficient + ratio.clamp(max=8) * torch.tanh(correction)
        return {
            "coefficient": has_previous * coefficient,
            "log_reuse": known_reuse + reuse,
            "log_forecast": torch.where(before > 1e-6, known_left, known_reuse) + left,
            "safe": 2 * margin + safe,
        }

    def path(self, sigmas: np.ndarray, solver: Solver, guidance_scale: float) -> np.ndarray:
        """Outputs to be expected on average at sigmas (S,) under a solver, (S, R) coordinates."""
        reaction = self.reaction.at(sigmas, guidance_scale).cautious()
        return self.paths.at(np.asarray(sigmas, float), solver, guidance_scale, reaction)

    def log_pace(
        self, sigmas: torch.Tensor, prompt: torch.Tensor, features: torch.Tensor
    ) -> torch.Tensor:
        """The output's squared change to each step over that of the mean prompt, (S,) logs.

        As far as such differences have held on prompts that were not trained on (`pace_trust`).

        Args:
            sigmas: (S,).
            prompt: (1, D) embedding.
            features: (1, C) of the configuration.
        """
        later = torch.arange(1, len(sigmas))
        levels = sigmas[torch.stack([later, later - 1, (later - 2).clamp(min=0)], dim=1)]
        prompts = torch.cat([prompt, self.prompt_mean[None]])
        context = self.context(prompts, features.expand(2, -1))
        asked, usual = self(
            torch.full((2 * len(later),), OUTPUT),
            levels.repeat(2, 1),
            context.repeat_interleave(len(later), dim=0),
        )["log_reuse"].reshape(2, -1)
        return self.pace_trust * nn.functional.pad(asked - usual, (1, 0))


def _waves(sigmas: torch.Tensor) -> torch.Tensor:
    """Smooth features of a noise level: (...) -> (..., 9)."""
    frequencies = torch.tensor([1.0, 2.0, 4.0], device=sigmas.device)
    angles = sigmas[..., None] * math.pi * frequencies
    inside = sigmas.clamp(1e-4, 1 - 1e-4)
    level = ((1 - inside) / inside).log()[..., None] / 4
    return torch.cat([level, sigmas[..., None], level**2, angles.sin(), angles.cos()], dim=-1)
