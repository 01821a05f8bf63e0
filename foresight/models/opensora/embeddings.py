"""What Open-Sora's ST-DiT adds to its tokens: where they are, which step it is, what is asked."""

import math

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

MAX_PERIOD = 10000.0
NUM_FREQUENCIES = 128


class RotaryEmbedding(nn.Module):
    """Rotary position embedding (Su et al., arXiv 2104.09864) over pairs of channels (2i, 2i+1)."""

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
        # A parameter because the checkpoint has it; it is not trained.
        self.freqs = nn.Parameter(MAX_PERIOD**-exponents, requires_grad=False)

    def forward(self, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosine and sine (length, 1, head_dim / 2) of the angles at positions 0..length-1.

        The angles have the precision of `freqs`: in bf16 so have those of the released model.
        """
        positions = torch.arange(length, device=self.freqs.device, dtype=self.freqs.dtype)
        angles = torch.outer(positions, self.freqs)[:, None]
        return angles.cos(), angles.sin()


def rotate(states: torch.Tensor, rope: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Turn states (N, length, heads, head_dim) by what `RotaryEmbedding` returned."""
    cos, sin = (part.to(states.dtype) for part in rope)
    even, odd = states.unflatten(-1, (-1, 2)).unbind(-1)  # (N, length, heads, head_dim / 2)
    return torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1).flatten(-2)


class SinusoidalEmbedder(nn.Module):
    """A number per sample, such as the timestep, as a vector: 128 cosines, 128 sines, an MLP."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(2 * NUM_FREQUENCIES, hidden_size),
            nn.SiLU(),
            nn.Linear(hidden_size, hidden_size),
        )

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Embed values (B,) as (B, hidden_size); the angles are taken in float32."""
        index = torch.arange(NUM_FREQUENCIES, device=values.device, dtype=torch.float32)
        angles = values.float()[:, None] * torch.exp(-math.log(MAX_PERIOD) * index / len(index))
        waves = torch.cat((angles.cos(), angles.sin()), dim=-1)  # (B, 256)
        return self.mlp(waves.to(self.mlp[0].weight.dtype))


class FeedForward(nn.Module):
    """Two linear layers with a tanh GELU between them."""

    def __init__(self, in_channels: int, inner_channels: int, out_channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(in_channels, inner_channels)
        self.fc2 = nn.Linear(inner_channels, out_channels)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Map (..., in_channels) to (..., out_channels)."""
        return self.fc2(F.gelu(self.fc1(hidden_states), approximate="tanh"))


class TextEmbedder(nn.Module):
    """Projects text embeddings; `y_embedding` stands in for the text of the unguided branch."""

    y_embedding: torch.Tensor

    def __init__(self, caption_channels: int, hidden_size: int, max_length: int) -> None:
        super().__init__()
        self.y_proj = FeedForward(caption_channels, hidden_size, hidden_size)
        null = torch.randn(max_length, caption_channels) / caption_channels**0.5
        self.register_buffer("y_embedding", null)

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        """Project text (B, L, caption_channels) to (B, L, hidden_size)."""
        return self.y_proj(text)


def position_embedding(
    channels: int, rows: int, columns: int, scale: float | torch.Tensor, device: torch.device
) -> torch.Tensor:
    """Sine and cosine embedding (rows * columns, channels) of a frame's patches, in float32.

    Coordinates are those of a square frame of equal area, divided by `scale` (the side of such a
    frame in pixels over the side that the model is made for), so that the same place in a larger
    video lies as far out. The first half of the channels is for x, the second for y.

    Args:
        channels: A multiple of 4.
        rows: Patches of a frame, from top to bottom.
        columns: Patches of a frame, from left to right.
        scale: A number, or a 0-dim tensor, which then is not read by the host.
        device: Where to compute.
    """
    side = round(math.sqrt(rows * columns))
    exponents = torch.arange(channels // 4, device=device, dtype=torch.float32) / (channels // 4)
    frequencies = MAX_PERIOD**-exponents

    def waves(length: int) -> torch.Tensor:
        places = torch.arange(length, device=device, dtype=torch.float32) / scale * side / length
        angles = torch.outer(places, frequencies)
        return torch.cat((angles.sin(), angles.cos()), dim=-1)  # (length, channels / 2)

    x = waves(columns)[None].expand(rows, -1, -1)
    y = waves(rows)[:, None].expand(-1, columns, -1)
    return torch.cat((x, y), dim=-1).flatten(0, 1)
