"""The trained part of a policy: risks of reuse and forecast, forecast coefficients, and gains.

It starts from what the traces say on average, the mean Gram matrix of every entity over noise
levels (a kernel: any step count reads it by interpolation), and learns what prompt, configuration
and the steps themselves change about that.

An entity is the model's output (0) or the residual r of one block (1 + index). For a target step s,
the last computed step a and the one before, p, the network predicts

    coefficient   beta of the forecast `r[a] + beta * (r[a] - r[p])`
    log_reuse     log of ||r[s] - r[a]||^2, relative as in a trace's Gram matrix
    log_forecast  log of what the forecast leaves
    log_gain      log of how far an error of the output at s reaches the video

and composes the damage of a plan from them: errors of one run of skipped steps, less what the step
after the run makes good, add up in amplitude, runs add up as a p-norm with a learned power.
"""

import math

import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import nn

from foresight.config import GenerationConfig

NUM_CONFIG_FEATURES = 5


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
        hidden: Width of the hidden layers.
        prompt_rank: Numbers that the prompt is reduced to.
    """

    prompt_mean: torch.Tensor
    prompt_scale: torch.Tensor
    config_mean: torch.Tensor
    config_scale: torch.Tensor
    grid: torch.Tensor
    kernel: torch.Tensor

    def __init__(
        self,
        num_blocks: int,
        prompt_width: int,
        num_levels: int,
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
        self.entity = nn.Embedding(num_blocks + 1, 16)
        width = 16 + prompt_rank + NUM_CONFIG_FEATURES + 18
        answers = nn.Linear(hidden, 3)
        nn.init.zeros_(answers.weight)  # training starts from the kernel's answers
        nn.init.zeros_(answers.bias)
        self.trunk = nn.Sequential(
            nn.Linear(width, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), answers
        )
        self.gain = nn.Linear(4 + NUM_CONFIG_FEATURES, 1)
        nn.init.zeros_(self.gain.weight)
        nn.init.constant_(self.gain.bias, -1.0)
        self.log_power = nn.Parameter(torch.zeros(()))
        self.leakage = nn.Linear(2, 1)
        nn.init.zeros_(self.leakage.weight)
        nn.init.constant_(self.leakage.bias, -2.0)
        nn.init.normal_(self.entity.weight, std=0.3)

    def fit_inputs(self, prompts: torch.Tensor, configs: torch.Tensor) -> None:
        """Take the means and scales of prompt embeddings (G, D) and config features (G, 5).

        What does not vary in training is ignored afterwards.
        """
        for name, values in (("prompt", prompts), ("config", configs)):
            spread = values.std(dim=0, unbiased=False)
            getattr(self, f"{name}_mean").copy_(values.mean(dim=0))
            getattr(self, f"{name}_scale").copy_(
                torch.where(spread > 1e-4, 1 / spread.clamp(min=1e-4), 0.0)
            )

    def fit_kernel(self, grid: torch.Tensor, grams: torch.Tensor) -> None:
        """Take the mean Gram matrices (N + 1, M, M) over the noise levels `grid` (M,), falling."""
        self.grid.copy_(grid)
        self.kernel.copy_(grams)

    def _read_kernel(self, entity: torch.Tensor, levels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Change, best coefficient and what it leaves, (Q,) each, of the interpolated residuals.

        Residuals are taken as linear between two levels of the grid, so that every answer is one of
        real vectors.
        """
        place = torch.searchsorted(-self.grid, -levels.contiguous()).clamp(1, len(self.grid) - 1)
        above, below = self.grid[place - 1], self.grid[place]
        share = ((above - levels) / (above - below).clamp(min=1e-6)).clamp(0, 1)
        nodes = torch.stack([place - 1, place], dim=-1).flatten(1)  # (Q, 6)
        weights = torch.stack([1 - share, share], dim=-1)  # (Q, 3, 2)
        block = self.kernel[entity[:, None, None], nodes[:, :, None], nodes[:, None, :]].double()
        spread = torch.zeros(len(levels), 3, 6, dtype=torch.float64, device=levels.device)
        for row in range(3):
            spread[:, row, 2 * row : 2 * row + 2] = weights[:, row].double()
        inner = spread @ block @ spread.mT  # (Q, 3, 3) over target, latest, previous
        (ss, sa, sp), (_, aa, ap), (_, _, pp) = (row.unbind(-1) for row in inner.unbind(1))
        floor = 1e-6 * ss.clamp(min=1e-12)
        change = torch.maximum(ss + aa - 2 * sa, floor)
        cross, motion = sa - sp - aa + ap, aa + pp - 2 * ap
        known = motion > floor
        coefficient = torch.where(known, cross / motion.clamp(min=1e-12), 0.0)
        left = torch.maximum(change - coefficient * cross * known, 1e-3 * change)
        return change.log().float(), coefficient.clamp(-1, 8).float(), left.log().float()

    def between(self, levels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Where the output at a level lies between those of two others, and what that leaves.

        Args:
            levels: (Q, 3) sigmas of target j, later step n, earlier step a.

        Returns:
            c of `v[a] + c * (v[n] - v[a])`, and the squared error; (Q,) each.
        """
        entity = torch.zeros(len(levels), dtype=torch.long, device=levels.device)
        _, coefficient, log_left = self._read_kernel(entity, levels)
        return 1 + coefficient, log_left.exp()

    def context(self, prompts: torch.Tensor, configs: torch.Tensor) -> torch.Tensor:
        """Encode prompt embeddings (G, D) and config features (G, 5) once a generation: (G, C)."""
        prompts = ((prompts - self.prompt_mean) * self.prompt_scale).clamp(-3, 3)
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
            `coefficient`, `log_reuse`, `log_forecast`, each (Q,).
        """
        target, latest, previous = levels.unbind(-1)
        gap, before = latest - target, previous - latest
        ratio = gap / before.clamp(min=1e-4)
        has_previous = (before > 1e-6).float()
        ratio = torch.where(before > 1e-6, ratio, 0.0)
        known_reuse, known_coefficient, known_left = self._read_kernel(entity, levels)
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
            ],
            dim=-1,
        )
        inputs = torch.cat([self.entity(entity), context, _waves(target), extra], dim=-1)
        correction, reuse, left = self.trunk(inputs).unbind(-1)
        coefficient = known_coefficient + ratio.clamp(max=8) * torch.tanh(correction)
        return {
            "coefficient": has_previous * coefficient,
            "log_reuse": known_reuse + reuse,
            "log_forecast": torch.where(before > 1e-6, known_left, known_reuse) + left,
        }

    def log_gain(self, sigmas: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """Log amplitude gain per step: sigmas (..., S), context (..., C) -> (..., S).

        A low-order curve over noise level and step size: roll-outs are few, and a freer function
        fits their noise.
        """
        steps = torch.cat([-sigmas.diff(dim=-1), sigmas[..., -1:]], dim=-1).clamp(min=1e-4)
        level = _log_ratio(sigmas) / 4
        curve = torch.stack([level, level**2, level**3, steps.log() / 3], dim=-1)
        configs = context[..., None, -NUM_CONFIG_FEATURES:].expand(
            *sigmas.shape, NUM_CONFIG_FEATURES
        )
        return self.gain(torch.cat([curve, configs], dim=-1))[..., 0]

    def leak(self, target: torch.Tensor, end: torch.Tensor) -> torch.Tensor:
        """Share of an error's energy that a correction does not reach.

        While the error lasted, the model was run on latents that were off: the more so, the higher
        the noise and the longer the way.

        Args:
            target: Sigmas where the error was made, any shape.
            end: Sigmas of the steps that correct.
        """
        level = _log_ratio(target) / 4
        way = (target - end).clamp(min=1e-3).log() / 3
        return torch.sigmoid(self.leakage(torch.stack([level, way], dim=-1))[..., 0])

    @property
    def power(self) -> torch.Tensor:
        """The p-norm over runs: 0.5 adds amplitudes, 1 adds energies, large takes the worst."""
        return 0.5 + 3.5 * torch.sigmoid(self.log_power - 1.8)

    def log_damage(
        self, errors: torch.Tensor, skipped: torch.Tensor, log_gain: torch.Tensor
    ) -> torch.Tensor:
        """Log of the predicted final error of plans at the output.

        Args:
            errors: (B, S) squared relative error of the output at each step.
            skipped: bool (B, S).
            log_gain: (B, S).

        Returns:
            (B,) log of latent MSE relative to the uncached run; very low where nothing is skipped.
        """
        amplitude = torch.where(skipped, log_gain.exp() * errors.clamp(min=1e-12).sqrt(), 0.0)
        starts = skipped & ~torch.nn.functional.pad(skipped, (1, 0))[:, :-1]
        run = starts.long().cumsum(dim=1) * skipped
        sums = torch.zeros_like(amplitude, dtype=amplitude.dtype)
        sums = torch.nn.functional.pad(sums, (1, 0)).scatter_add(1, run, amplitude)[:, 1:]
        log_runs = torch.where(sums > 0, 2 * sums.clamp(min=1e-12).log(), -60.0)
        return torch.logsumexp(self.power * log_runs, dim=1) / self.power


def _log_ratio(sigmas: torch.Tensor) -> torch.Tensor:
    """Log of signal over noise, with sigmas kept off 0 and 1."""
    inside = sigmas.clamp(1e-4, 1 - 1e-4)
    return ((1 - inside) / inside).log()


def _waves(sigmas: torch.Tensor) -> torch.Tensor:
    """Smooth features of a noise level: (...) -> (..., 9)."""
    frequencies = torch.tensor([1.0, 2.0, 4.0], device=sigmas.device)
    angles = sigmas[..., None] * math.pi * frequencies
    level = _log_ratio(sigmas)[..., None] / 4
    return torch.cat([level, sigmas[..., None], level**2, angles.sin(), angles.cos()], dim=-1)
