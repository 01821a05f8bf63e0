"""How an error of the prediction reaches the video, and what a run of skipped steps costs.

Latents follow `x[s] = x[0] + sum over j <= s of response[j, s] * v[j]`. The solver's response is
known exactly; what is learned is the model's own reaction, how its prediction answers latents that
are off. A number per noise level suffices: with it, what any run of skipped steps does to the final
latents is a linear combination of the predictions v of the uncached generation, so its energy is
read off their Gram matrix: signs, interference within the run and the correction after it included.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

DEGREE = 2  # of the curves over the noise level
TINY = 1e-12
RIDGE = 1e-3  # keeps corrections from living off rounding


class Dynamics(NamedTuple):
    """Of one generation with S steps."""

    response: Tensor
    """(S, S) of the solver alone, see `solver_response`."""
    reaction: Tensor
    """(S,) change of the model's prediction for a unit change of its latents."""
    reach: Tensor
    """(S,) what a unit put into the prediction adds to the final latents."""
    doubt: Tensor
    """(S,) energy that a correction adds to them beyond that, for a unit of its own."""


class Runs(NamedTuple):
    """B runs of at most P skipped steps, between computed ones."""

    previous: Tensor
    """(B,) the step computed before `latest`; the same step where there is none."""
    latest: Tensor
    """(B,) the step computed last."""
    following: Tensor
    """(B,) the step computed next; S where the generation ends."""
    which: Tensor
    """(B,) whose Gram matrix is meant."""
    coefficients: Tensor
    """(B, P) of the forecasts; 0 where reused, anything behind the run's end."""


class ErrorDynamics(nn.Module):
    """The learned part: reaction, doubt, and how the damage of several runs adds up."""

    def __init__(self) -> None:
        super().__init__()
        self.reaction = nn.Parameter(torch.zeros(DEGREE + 1))
        self.doubt = nn.Parameter(torch.tensor([-4.0] + [0.0] * DEGREE))
        self.log_power = nn.Parameter(torch.zeros(()))
        self.offset = nn.Parameter(torch.zeros(()))

    @property
    def power(self) -> Tensor:
        """The p-norm over runs: 0.5 adds amplitudes, 1 adds energies, more leans to the worst."""
        return 0.5 + 1.5 * torch.sigmoid(self.log_power - 0.7)

    def forward(self, sigmas: Tensor, response: Tensor) -> Dynamics:
        """The dynamics over noise levels (S,) with a solver's response (S, S)."""
        level = log_ratio(sigmas.double().clamp(0.01, 0.99)) / 2
        reaction = _curve(self.reaction, level)
        response = response.double()
        final = propagate(response, reaction)[:, -1]
        return Dynamics(
            response=response,
            reaction=reaction,
            reach=final,
            doubt=_curve(self.doubt, level).clamp(-14, 8).exp() * final**2,
        )

    def log_damage(self, energies: Tensor, which: Tensor, count: int) -> Tensor:
        """Log of the final error (count,) of generations from the energies (B,) of their runs."""
        summed = torch.zeros(count, dtype=energies.dtype, device=energies.device)
        summed = summed.index_add(0, which, energies**self.power)
        return summed.clamp(min=1e-30).log() / self.power + self.offset


def propagate(response: Tensor, reaction: Tensor) -> Tensor:
    """What a unit put into one prediction does to the latents, left to solver and model.

    Args:
        response: (S, S) of the solver alone.
        reaction: (S,) of the model.

    Returns:
        (S, S); `[j, k]` is what a unit at step j adds to the latents after step k.
    """
    # What is left after step l - 1 is answered at step l: moved = response + moved @ answered.
    answered = nn.functional.pad(reaction[1:, None] * response[1:], (0, 0, 0, 1))
    unanswered = torch.eye(len(reaction), dtype=response.dtype) - answered
    return torch.linalg.solve_triangular(
        unanswered, response, upper=True, left=False, unitriangular=True
    )


def run_energies(
    runs: Runs, gram: Tensor, dynamics: Dynamics, corrections: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """What runs leave in the final latents, relative to the mean square of a prediction.

    A skipped step j takes `v[a] + beta * (v[a] - v[p])` for v[j], and does not react to what the
    steps of the run before it did. Step n, computed next, may add
    `kappa * (v[n] - v[a]) - lambda * (v[a] - v[p])` to its prediction: the corrector of a
    predictor-corrector method, with coefficients from the model instead of polynomials.

    Args:
        runs: B of them.
        gram: (G, S, S) inner products of predictions; only differences of predictions count.
        dynamics: Of the generation.
        corrections: (B, 2) kappa and lambda; None takes those that leave least.

    Returns:
        (B,) energies; (B, 2) corrections, 0 where nothing follows.
    """
    steps, length = len(dynamics.reaction), runs.coefficients.shape[1]
    inside = runs.latest[:, None] + 1 + torch.arange(length)
    skipped = inside < runs.following[:, None]  # (B, P)
    inside, end = inside.clamp(max=steps - 1), runs.following.clamp(max=steps - 1)
    # All that a run does is a combination of these predictions: p, a, the skipped steps, n.
    nodes = torch.cat([runs.previous[:, None], runs.latest[:, None], inside, end[:, None]], dim=1)
    inner = gram.double()[runs.which[:, None, None], nodes[:, :, None], nodes[:, None, :]]
    betas = runs.coefficients.double()
    missed = torch.zeros(*betas.shape, nodes.shape[1], dtype=torch.float64)  # (B, P, P + 3)
    missed[..., 0], missed[..., 1] = -betas, 1 + betas
    missed = (missed - torch.eye(length + 3, dtype=torch.float64)[2:-1]) * skipped[..., None]
    # Latents before each skipped step and before n: those that the steps so far have moved.
    until = torch.cat([inside, end[:, None]], dim=1)
    earlier = inside[:, :, None] < until[:, None, :]
    moves = dynamics.response[inside[:, :, None], (until - 1)[:, None, :]] * earlier
    latents = moves.mT @ missed  # (B, P + 1, P + 3)
    put_in = missed - dynamics.reaction[inside][..., None] * latents[:, :-1]
    put_in = put_in * skipped[..., None]

    left = (dynamics.reach[inside][:, None] @ put_in)[:, 0]  # in the final latents, (B, P + 3)
    plain = ((inner @ left[..., None])[..., 0] * left).sum(dim=1)

    corrects = (runs.following < steps) & (runs.following > runs.latest + 1)
    ways = torch.zeros(len(betas), 2, nodes.shape[1], dtype=torch.float64)
    ways[:, 0] = dynamics.reaction[end][:, None] * latents[:, -1]
    ways[:, 0, -1] += 1
    ways[:, 0, 1] -= 1
    ways[:, 1, 0], ways[:, 1, 1] = 1, -1
    ways = ways * corrects[:, None, None]
    reach = dynamics.reach[end]
    own = ways @ inner @ ways.mT * (reach**2 + dynamics.doubt[end])[:, None, None]
    shared = (ways @ inner @ left[..., None])[..., 0] * reach[:, None]
    if corrections is None:
        ridge = torch.diag_embed(RIDGE * own.diagonal(dim1=1, dim2=2) + TINY)
        made = -torch.linalg.solve(own + ridge, shared)
    else:
        made = corrections
    change = 2 * (made * shared).sum(dim=1) + ((own @ made[..., None])[..., 0] * made).sum(dim=1)
    return (plain + change).clamp(min=1e-14), made


def log_ratio(sigmas: Tensor) -> Tensor:
    """Log of signal over noise, with sigmas kept off 0 and 1."""
    inside = sigmas.clamp(1e-4, 1 - 1e-4)
    return ((1 - inside) / inside).log()


def _curve(coefficients: Tensor, level: Tensor) -> Tensor:
    """A polynomial (S,) over levels (S,)."""
    powers = level[:, None] ** torch.arange(len(coefficients))
    return powers @ coefficients.double()
