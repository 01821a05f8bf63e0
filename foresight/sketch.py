"""Linear sketches: short random projections whose inner products estimate the originals'."""

import torch


class Sketcher:
    """Random signs, then folding into `width` buckets (a count sketch; Charikar et al. 2002).

    For vectors x and y the estimate <Sx, Sy> of <x, y> is unbiased, with variance at most
    2 |x|^2 |y|^2 / width for spread-out vectors. The fold is by position modulo an odd prime, so
    that a large channel does not meet itself in one bucket. Linear: sketches of equal layout add
    up.

    Args:
        width: Buckets; a prime keeps channels apart.
        seed: Of the signs; sketches compare only under one seed.
    """

    def __init__(self, width: int = 4093, seed: int = 0) -> None:
        self.width, self.seed = width, seed
        self._signs: dict[tuple[int, torch.device], torch.Tensor] = {}

    def __call__(self, values: torch.Tensor) -> torch.Tensor:
        """Sketch each row: (B, ...) of any float type -> float32 (B, width)."""
        flat = values.flatten(1)
        rows = -(-flat.shape[1] // self.width)
        signs = self._sign(rows * self.width, flat.device)
        signed = flat.float() * signs[: flat.shape[1]]
        padded = torch.nn.functional.pad(signed, (0, rows * self.width - flat.shape[1]))
        return padded.view(len(flat), rows, self.width).sum(dim=1)

    def _sign(self, count: int, device: torch.device) -> torch.Tensor:
        key = count, device
        if key not in self._signs:
            rng = torch.Generator().manual_seed(self.seed)
            self._signs[key] = (
                (torch.randint(2, (count,), generator=rng) * 2 - 1).float().to(device)
            )
        return self._signs[key]
