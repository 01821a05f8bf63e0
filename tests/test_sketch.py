import numpy as np
import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from foresight import sketch
from foresight.sketch import Sketcher

WIDTH, LENGTH, SEEDS = 127, 6000, 500


def estimates(x: torch.Tensor, y: torch.Tensor) -> np.ndarray:
    """<Sx, Sy> under many seeds."""
    found = []
    for seed in range(SEEDS):
        sketch = Sketcher(WIDTH, seed)
        found.append(float(sketch(x).double() @ sketch(y).double()))
    return np.asarray(found)


@pytest.mark.parametrize("alike", [0.0, 0.7, 1.0])
def test_inner_products_are_unbiased_with_the_bound_of_theory(alike):
    rng = torch.Generator().manual_seed(0)
    x, noise = torch.randn(2, LENGTH, generator=rng)
    y = alike * x + (1 - alike**2) ** 0.5 * noise
    exact = float(x.double() @ y.double())
    bound = 2 * float(x.double().square().sum() * y.double().square().sum()) / WIDTH
    found = estimates(x, y)
    assert abs(found.mean() - exact) < 4 * (bound / SEEDS) ** 0.5
    # Theory says (|x|^2 |y|^2 + <x,y>^2) / width; 500 draws tell a variance to within 20 %.
    theory = (1 + alike**2) / 2 * bound
    assert found.var() < 1.25 * bound
    assert found.var() == pytest.approx(theory, rel=0.25)


def test_large_channels_do_not_meet_in_one_bucket():
    """A stream with 128 channels, one of them a hundred times the others."""
    rng = torch.Generator().manual_seed(1)
    x = torch.randn(64, 128, generator=rng)
    x[:, 5] *= 100
    norms = np.asarray([float(Sketcher(1021, seed)(x).square().sum()) for seed in range(200)])
    exact = float(x.square().sum())
    assert norms.mean() == pytest.approx(exact, rel=0.02)
    assert norms.var() < 1.3 * 2 * exact**2 / 1021


@pytest.mark.parametrize("wave", [0.0, 0.02, np.pi])
def test_what_is_alike_everywhere_is_no_worse_than_noise(wave):
    """The signs of a row are those of the next, moved on: nothing smooth may find that out."""
    x = torch.cos(wave * torch.arange(LENGTH))
    exact = float(x.square().sum())
    found = estimates(x, x)
    deviation = exact * (2 / WIDTH) ** 0.5
    assert abs(found.mean() - exact) < 4 * deviation / SEEDS**0.5
    assert found.var() == pytest.approx(deviation**2, rel=0.25)


def test_sketches_are_linear():
    rng = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 7, 31, generator=rng)
    sketch = Sketcher(64, seed=3)
    torch.testing.assert_close(sketch(2 * x - 3 * y), 2 * sketch(x) - 3 * sketch(y))
    torch.testing.assert_close(sketch(x, less=y), sketch(x) - sketch(y))


def test_seeds_repeat():
    x = torch.randn(10, 20, generator=torch.Generator().manual_seed(0))
    assert torch.equal(Sketcher(16, seed=1)(x), Sketcher(16, seed=1)(x))
    assert not torch.allclose(Sketcher(16, seed=1)(x), Sketcher(16, seed=2)(x))


@pytest.mark.parametrize("piece", [1, 100, 640, 5000])
def test_pieces_and_the_order_in_memory_make_no_difference(monkeypatch, piece):
    """Whole rows at a time, or what the leading dimensions leave, against all at once."""
    x, y = torch.randn(2, 3, 5, 7, 11, generator=torch.Generator().manual_seed(0))
    whole = Sketcher(64)(x, less=y)
    turned = [each.transpose(1, 2).contiguous().transpose(1, 2) for each in (x, y)]
    assert not turned[0].is_contiguous()
    monkeypatch.setattr(sketch, "PIECE", piece)
    for first, second in ((x, y), turned, (x, turned[1])):
        torch.testing.assert_close(Sketcher(64)(first, less=second), whole)


def test_a_large_tensor_takes_little_besides():
    """Counted in all that is allocated beside a tensor of 64 MiB; in one piece it were 450."""
    x, sketch = torch.zeros(2**25, dtype=torch.bfloat16), Sketcher()
    sketch(x)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        sketch(x, less=x)
    held = peak = 0
    for event in trace.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    assert 0 < peak < 44 * 2**20


def test_short_vectors_keep_their_inner_products_exactly():
    x, y = torch.randn(2, 50, generator=torch.Generator().manual_seed(0))
    sketch = Sketcher(64)
    assert float((sketch(x) * sketch(y)).sum()) == pytest.approx(float((x * y).sum()), rel=1e-5)


def test_half_precision_is_sketched_in_single():
    x = torch.randn(5000, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert torch.equal(Sketcher(31)(x), Sketcher(31)(x.float()))
