"""Linear sketches: short random projections whose inner products estimate the originals'."""

from collections.abc import Iterator

import torch

PIECE = 2**22  # numbers sketched at once: work that outlasts its launch, in little memory


class Sketcher:
    """Random signs, then folding into `width` buckets (a count sketch; Charikar et al. 2002).

    For tensors x and y the estimate <Sx, Sy> of <x, y> is unbiased, with variance at most
    2 |x|^2 |y|^2 / width for spread-out ones. The fold is by position modulo an odd prime, so that
    a large channel does not meet itself in one bucket. Linear: sketches of equal shape add up.

    Row r of the fold has the signs r to r + width of one long series, times a sign of its own. Any
    four positions that meet in a variance pair up exactly as if every position had a sign of its
    own, so the bound is the same; but there are only as many signs as rows and buckets.

    Args:
        width: Buckets; a prime keeps channels apart.
        seed: Of the signs; sketches compare only under one seed.
    """

    def __init__(self, width: int = 4093, seed: int = 0) -> None:
        self.width, self.seed = width, seed
        self._signs: dict[tuple[int, torch.device], tuple[torch.Tensor, torch.Tensor]] = {}

    def __call__(self, values: torch.Tensor, less: torch.Tensor | None = None) -> torch.Tensor:
        """Sketch a tensor piece by piece: what that takes does not grow with the tensor.

        Args:
            values: Of any shape and float type.
            less: What to subtract first, of the same shape and type.

        Returns:
            float32 (width,).
        """
        total = torch.zeros(self.width, device=values.device)
        own, windows = self._drawn(-(-values.numel() // self.width), values.device)
        begin = 0
        for piece in self._pieces(values, less):
            row, column = divmod(begin, self.width)
            begin += len(piece)
            end = -(-begin // self.width)
            ragged = column, end * self.width - begin
            if any(ragged):
                piece = torch.nn.functional.pad(piece, ragged)
            signed = piece.view(-1, self.width) * windows[row:end]
            total.addmv_(signed.float().mT, own[row:end])
            del signed  # before the next piece is there
        return total

    def _pieces(self, values: torch.Tensor, less: torch.Tensor | None) -> Iterator[torch.Tensor]:
        """The difference in order, flat, some whole rows at a time where memory is in order too."""
        given = (values,) if less is None else (values, less)
        if all(each.is_contiguous() for each in given):
            given = tuple(each.view(-1) for each in given)
        most = max(1, PIECE // self.width) * self.width
        for first, *second in zip(*(_split(each, most) for each in given), strict=True):
            yield (first - second[0] if second else first).reshape(-1)

    def _drawn(self, rows: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """A sign for each row, (rows,), and their windows of the series, (rows, width)."""
        key = rows, device
        if key not in self._signs:
            rng = torch.Generator().manual_seed(self.seed)
            drawn = torch.randint(2, (2 * rows + self.width - 1,), generator=rng) * 2.0 - 1
            own, series = drawn.to(device).split([rows, rows + self.width - 1])
            self._signs[key] = own, series.unfold(0, self.width, 1)
        return self._signs[key]


def _split(values: torch.Tensor, most: int) -> Iterator[torch.Tensor]:
    """Consecutive slices of at most `most` numbers."""
    if values.numel() <= most:
        yield values
    elif (inner := values[0].numel()) > most:
        for each in values:
            yield from _split(each, most)
    else:
        yield from values.split(most // inner)
