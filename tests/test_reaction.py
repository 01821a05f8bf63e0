"""How a model answers latents that are off: its curves, and what errors come to by the end."""

import numpy as np
import pytest
import torch
from solvers_by_hand import (
    MULTISTEP,
    ONE_STEP,
    SOLVER_STEPS,
    known_solver,
    latents_along,
    precision,
)

from foresight.policies.reaction import Reaction, ReactionModel, gains_after, noise_level
from foresight.solver import euler_solver

GAIN = (0.4, -0.7, 0.3, 0.2, -0.15, 0.05)
SHARE = (0.1, 0.2, 0.25, -0.1)
LASTING = (0.3, -0.5, 0.2)
LEVELS, GUIDANCE = (-1.5, 1.2), (2.0, 8.0)  # that were seen
REACTION = Reaction(np.linspace(-0.8, 0.9, SOLVER_STEPS), np.linspace(0.9, 0.2, SOLVER_STEPS))


def name_of(scheduler) -> str:
    return type(scheduler).__name__


@pytest.fixture
def model() -> ReactionModel:
    model = ReactionModel()
    for name, values in (("gain", GAIN), ("share", SHARE), ("lasting", LASTING)):
        getattr(model, name).copy_(torch.tensor(values, dtype=torch.float64))
    model.known.copy_(torch.from_numpy(np.stack([LEVELS, np.log(GUIDANCE)])))
    return model


def by_hand(sigma: float, guidance: float) -> tuple[float, float, float]:
    """Along the error, by how much more or less across, and how much of that lasts; by polynomials.

    Of half the log of signal over noise, and of how much stronger than in the middle of what was
    seen guidance is.
    """
    x = min(max(np.log((1 - sigma) / sigma) / 2, -1.5), 1.2)
    g = np.log(min(max(guidance, 2), 8) / 4)
    gain = np.exp(0.4 - 0.7 * x + 0.3 * g + 0.2 * x**2 - 0.15 * x * g + 0.05 * x**3)
    share = 0.98 * np.tanh(0.1 + 0.2 * x + 0.25 * g - 0.1 * x**2)
    lasting = 1 / (1 + np.exp(-(0.3 - 0.5 * x + 0.2 * g)))
    return gain * share, gain * (1 - share**2) ** 0.5, lasting


@pytest.mark.parametrize("guidance", [0.0, 1.0, 2.0, 3.0, 4.0, 7.5, 20.0])
def test_the_reaction_is_a_curve_over_noise_level_and_guidance(model, guidance):
    """Level where guidance is weaker or stronger than was seen."""
    sigmas = np.array([0.94, 0.7, 0.5, 0.2, 0.09])
    expected = np.array([by_hand(sigma, guidance) for sigma in sigmas]).T
    assert np.stack(model.at(sigmas, guidance)) == pytest.approx(expected, rel=1e-9)


def test_where_one_guidance_scale_was_seen_it_makes_no_difference(model):
    model.known[1] = np.log(4.0)
    sigmas = np.array([0.9, 0.4])
    expected = np.array([by_hand(sigma, 4.0) for sigma in sigmas]).T
    for guidance in (1.0, 4.0, 30.0):
        assert np.stack(model.at(sigmas, guidance)) == pytest.approx(expected, rel=1e-9)


def test_a_model_that_was_never_fitted_answers_by_as_much():
    """At right angles to them, and half of it in directions that last."""
    reaction = ReactionModel().at(np.array([0.9, 0.5, 0.1]), 4.0)
    expected = np.outer([0, 1, 0.5], np.ones(3))
    assert np.stack(reaction) == pytest.approx(expected)


def test_halves_of_all_directions_react_more_and_less(model):
    """Errors along both alike have the energy of the coherent and the spread together."""
    reaction = model.at(np.array([0.9, 0.3]), 5.0).cautious()
    for step, (coherent, spread) in enumerate(zip(*reaction[:2], strict=True)):
        answers = reaction.answer(step, np.eye(6))
        expected = [coherent + spread] * 3 + [coherent - spread] * 3
        assert answers == pytest.approx(np.diag(expected))
        assert np.square(answers.diagonal()).mean() == pytest.approx(coherent**2 + spread**2)


def test_cautious_answers_are_linear_in_errors_of_any_number(model, rng):
    reaction = model.at(np.array([0.9, 0.3]), 5.0).cautious()
    errors = rng.normal(size=(2, 5, 8))
    found = reaction.answer(1, errors)
    assert found.shape == errors.shape
    for place in np.ndindex(2, 5):
        assert found[place] == pytest.approx(errors[place] @ reaction.answer(1, np.eye(8)))


def even(rng: np.random.Generator, *shape: int, rank: int, steps: int) -> np.ndarray:
    """Errors (..., D) alike in both halves, and nothing that steps added."""
    half = rng.normal(size=(*shape, rank))
    return np.concatenate([half, half, np.zeros((*shape, steps))], axis=-1)


@pytest.mark.parametrize("lasting", [0.0, 0.3, 1.0])
def test_a_new_error_is_answered_by_as_much_however_much_of_it_lasts(rng, lasting):
    """Along it by what is coherent, across it by the spread: part in halves, part as never before.

    Of any number of errors, each by itself.
    """
    reaction = Reaction(np.array([0.4, -0.7]), np.array([0.9, 0.5]), np.full(2, lasting))
    errors = even(rng, 2, 5, rank=3, steps=2)
    kept = errors.copy()
    for step, (coherent, spread, _) in enumerate(zip(*reaction, strict=True)):
        across = reaction.answer(step, errors) - coherent * errors
        size = np.linalg.norm(errors, axis=-1)
        assert np.linalg.norm(across, axis=-1) == pytest.approx(spread * size)
        assert (across * errors).sum(axis=-1) == pytest.approx(np.zeros((2, 5)), abs=1e-9)
        assert np.abs(across[..., :6]) == pytest.approx(lasting * spread * np.abs(errors[..., :6]))
        assert across[..., :3] == pytest.approx(-across[..., 3:6])
        assert not across[..., 6 + 1 - step].any()
        assert (errors == kept).all()


def test_what_is_new_at_a_step_is_at_right_angles_to_what_was_new_before(rng):
    """It reacts coherently from then on, in neither half."""
    reaction = Reaction(np.array([0.4, -0.7]), np.array([0.9, 0.5]), np.array([0.6, 0.6]))
    first = reaction.answer(0, even(rng, rank=3, steps=2))
    own = np.append(np.zeros(6), first[6:])
    again = reaction.answer(1, own)
    assert own[6] > 0
    assert own[7] == 0
    assert again[:7] == pytest.approx(-0.7 * own[:7])
    assert again[7] == pytest.approx(0.5 * 0.8 * own[6])


def test_embedding_keeps_inner_products(model):
    whole = model.at(np.array([0.9, 0.3]), 5.0)
    path = np.array([[1.0, 2, 3], [0, 1, -1]])
    for reaction, width in ((whole, 8), (whole.cautious(), 6)):
        embedded = reaction.embedded(path)
        assert embedded.shape == (2, width)
        assert (embedded[:, :3] == embedded[:, 3:6]).all()
        assert not embedded[:, 6:].any()
        assert embedded @ embedded.T == pytest.approx(path @ path.T)


def test_to_be_cautious_is_to_forget_what_does_not_last(model):
    whole = model.at(np.array([0.9, 0.3]), 5.0)
    cautious = whole.cautious()
    assert cautious.lasting is None
    assert np.stack(cautious[:2]) == pytest.approx(np.stack(whole[:2]))
    assert (np.abs(whole.lasting - 0.5) < 0.5).all()


def test_beyond_what_is_known_the_reaction_stays_level(model):
    inside = 1 / (1 + np.exp(2 * np.array(LEVELS)))  # at the known ends
    ends = np.stack(model.at(inside, 5.0))
    for beyond in ([1.0, 0.0], [0.99, 0.02]):
        assert np.stack(model.at(np.array(beyond), 5.0)) == pytest.approx(ends, rel=1e-6)


def test_coherent_shares_stay_below_all_of_it(model):
    for sign in (1, -1):
        model.share.copy_(torch.tensor([30.0 * sign, 0, 0, 0]))
        coherent, spread, _ = model.at(np.array([0.5]), 5.0)
        assert coherent / np.hypot(coherent, spread) == pytest.approx(0.98 * sign)
        assert spread > 0


def test_gains_stay_within_what_can_be_reckoned_with(model):
    for sign in (1, -1):
        model.gain.copy_(torch.tensor([100.0 * sign, 0, 0, 0, 0, 0]))
        size = np.linalg.norm(np.stack(model.at(np.array([0.5]), 5.0)[:2]))
        assert size == pytest.approx(np.exp(5 * sign))


def test_noise_levels_are_finite_at_both_ends():
    assert noise_level(np.array([0.5])) == pytest.approx(0)
    assert np.isfinite(noise_level(np.array([1.0, 0.0]))).all()


# Gains.


def energy_at_the_end(scheduler, reaction: Reaction, start: int) -> float:
    """Of latents that are off by 1 before a step, in a real run of a model of two directions."""
    true, first = torch.randn(SOLVER_STEPS, 2).double(), torch.randn(2).double()
    plain = latents_along(scheduler, first, lambda step, _: true[step])
    unit = torch.full((2,), 0.5**0.5).double()
    # Before all steps but the first, a prediction makes the latents off that counts no further.
    push = unit / known_solver(scheduler).response[start - 1, start - 1]

    def predict(step: int, latents: torch.Tensor) -> torch.Tensor:
        coherent, spread = float(reaction.coherent[step]), float(reaction.spread[step])
        answer = torch.tensor([coherent + spread, coherent - spread]) * (latents - plain[step])
        return true[step] + answer + (push if step == start - 1 else 0)

    off = latents_along(scheduler, first + unit if start == 0 else first, predict) - plain
    assert off[start].square().sum().item() == pytest.approx(1, rel=1e-3)
    return off[-1].square().sum().item()


@pytest.mark.parametrize("scheduler", ONE_STEP, ids=name_of)
def test_gains_are_what_errors_before_each_step_come_to(scheduler):
    torch.manual_seed(0)
    found = gains_after(known_solver(scheduler), REACTION)
    expected = [energy_at_the_end(scheduler, REACTION, s) for s in range(SOLVER_STEPS + 1)]
    assert found == pytest.approx(expected, rel=100 * precision(scheduler))
    assert max(expected) > 1.5 * min(expected)
    nothing_lasts = REACTION._replace(lasting=np.zeros(SOLVER_STEPS))
    assert (gains_after(known_solver(scheduler), nothing_lasts) == found).all()


@pytest.mark.parametrize("scheduler", MULTISTEP, ids=name_of)
def test_gains_of_first_and_final_latents_are_exact_for_solvers_that_look_back(scheduler):
    torch.manual_seed(0)
    found = gains_after(known_solver(scheduler), REACTION)
    assert found[0] == pytest.approx(energy_at_the_end(scheduler, REACTION, 0), rel=1e-4)
    assert found[-1] == pytest.approx(1)


@pytest.mark.parametrize("known", [True, False])
def test_gains_under_flow_matching_are_a_product(known):
    """With first latents that stay whole, and where nothing is known of them."""
    sigmas = np.linspace(0.97, 0.2, 7)
    rng = np.random.default_rng(0)
    reaction = Reaction(rng.normal(size=7), rng.uniform(0, 1, size=7))
    solver = euler_solver(sigmas)
    if known:
        solver = solver._replace(decay=np.ones(7), known=True)
    sizes = np.diff(np.append(sigmas, 0))
    halves = 1 + sizes * (reaction.coherent + np.outer([1, -1], reaction.spread))
    expected = [np.prod(halves[:, start:] ** 2, axis=1).mean() for start in range(8)]
    assert gains_after(solver, reaction) == pytest.approx(expected)


def test_unless_the_model_answers_nothing_grows_or_heals():
    """Under flow matching."""
    unmoved = Reaction(*np.zeros((2, 5)))
    assert gains_after(euler_solver(np.linspace(1, 0.1, 5)), unmoved) == pytest.approx(np.ones(6))
