import numpy as np
import pytest
import torch

from foresight.sketch import Sketcher

WIDTH, LENGTH, SEEDS = 127, 6000, 500


def estimates(x: torch.Tensor, y: torch.Tensor) -> np.ndarray:
    """<Sx, Sy> under many seeds."""
    found = []
    for seed in range(SEEDS):
        sketch = Sketcher(WIDTH, seed)(torch.stack([x, y])).double()
        found.append(float(sketch[0] @ sketch[1]))
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
    norms = np.asarray(
        [float(Sketcher(1021, seed)(x.reshape(1, -1)).square().sum()) for seed in range(200)]
    )
    exact = float(x.square().sum())
    assert norms.mean() == pytest.approx(exact, rel=0.02)
    assert norms.var() < 1.3 * 2 * exact**2 / 1021


def test_sketches_are_linear():
    rng = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 1, 7, 31, generator=rng, dtype=torch.float64).float()
    sketch = Sketcher(64, seed=3)
    torch.testing.assert_close(sketch(2 * x - 3 * y), 2 * sketch(x) - 3 * sketch(y))


def test_rows_are_sketched_alone_and_seeds_repeat():
    rows = torch.randn(3, 10, 20, generator=torch.Generator().manual_seed(0))
    together = Sketcher(16, seed=1)(rows)
    assert together.shape == (3, 16)
    alone = torch.cat([Sketcher(16, seed=1)(row[None]) for row in rows])
    torch.testing.assert_close(together, alone)
    assert not torch.allclose(together, Sketcher(16, seed=2)(rows))


def test_short_vectors_keep_their_inner_products_exactly():
    x, y = torch.randn(2, 1, 50, generator=torch.Generator().manual_seed(0))
    sketch = Sketcher(64)
    assert float((sketch(x) * sketch(y)).sum()) == pytest.approx(float((x * y).sum()), rel=1e-5)


def test_half_precision_is_sketched_in_single():
    x = torch.randn(1, 5000, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert torch.equal(Sketcher(31)(x), Sketcher(31)(x.float()))
