"""One block of Open-Sora's ST-DiT: attention within a frame or along time, to the text, and MLP."""

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from foresight.models.opensora.embeddings import FeedForward, rotate

NORM_EPS = 1e-6


class SelfAttention(nn.Module):
    """Multi-head self-attention; queries and keys may be normalised (RMSNorm) and rotated."""

    def __init__(self, hidden_size: int, num_heads: int, *, qk_norm: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        head_dim = hidden_size // num_heads
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size)
        self.q_norm = nn.RMSNorm(head_dim, eps=NORM_EPS) if qk_norm else nn.Identity()
        self.k_norm = nn.RMSNorm(head_dim, eps=NORM_EPS) if qk_norm else nn.Identity()
        self.proj = nn.Linear(hidden_size, hidden_size)

    def forward(
        self,
        hidden_states: torch.Tensor,
        rope: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Attend among the tokens of (N, length, C); returns the same shape."""
        qkv = self.qkv(hidden_states).unflatten(-1, (3, self.num_heads, -1))
        query, key, value = qkv.unbind(2)  # (N, length, heads, head_dim)
        query, key = self.q_norm(query), self.k_norm(key)
        if rope is not None:
            query, key = rotate(query, rope), rotate(key, rope)
        heads = (states.transpose(1, 2) for states in (query, key, value))
        attended = F.scaled_dot_product_attention(*heads)
        return self.proj(attended.transpose(1, 2).flatten(2))


class CrossAttention(nn.Module):
    """Multi-head attention to the text."""

    def __init__(self, hidden_size: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q_linear = nn.Linear(hidden_size, hidden_size)
        self.kv_linear = nn.Linear(hidden_size, 2 * hidden_size)
        self.proj = nn.Linear(hidden_size, hidden_size)

    def forward(
        self, hidden_states: torch.Tensor, text: torch.Tensor, text_mask: torch.Tensor | None
    ) -> torch.Tensor:
        """Attend from (B, N, C) to text (B, L, C) where `text_mask` (B, L) is true."""
        query = self.q_linear(hidden_states).unflatten(-1, (self.num_heads, -1))
        key, value = self.kv_linear(text).unflatten(-1, (2, self.num_heads, -1)).unbind(2)
        heads = (states.transpose(1, 2) for states in (query, key, value))
        keys = None if text_mask is None else text_mask[:, None, None]  # (B, 1, 1, L)
        attended = F.scaled_dot_product_attention(*heads, attn_mask=keys)
        return self.proj(attended.transpose(1, 2).flatten(2))


def modulate(hidden_states: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """LayerNorm without weights, then a scale and a shift that broadcast to the hidden states."""
    normed = F.layer_norm(hidden_states, hidden_states.shape[-1:], eps=NORM_EPS)
    return normed * (1 + scale) + shift


class STDiT3Block(nn.Module):
    """Self-attention and MLP, modulated by the noise level (adaLN-single, arXiv 2310.00426).

    Args:
        hidden_size, num_heads, mlp_ratio, qk_norm: See `STDiT3Transformer3DModel`.
        temporal: Attend along time, with rotary positions, rather than within each frame.
    """

    def __init__(
        self, hidden_size: int, num_heads: int, mlp_ratio: float, *, qk_norm: bool, temporal: bool
    ) -> None:
        super().__init__()
        self.temporal = temporal
        self.scale_shift_table = nn.Parameter(torch.randn(6, hidden_size) / hidden_size**0.5)
        self.attn = SelfAttention(hidden_size, num_heads, qk_norm=qk_norm)
        self.cross_attn = CrossAttention(hidden_size, num_heads)
        self.mlp = FeedForward(hidden_size, int(hidden_size * mlp_ratio), hidden_size)

    def forward(
        self,
        hidden_states: torch.Tensor,
        text: torch.Tensor,
        modulation: torch.Tensor,
        rope: tuple[torch.Tensor, torch.Tensor],
        num_frames: int,
        text_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """One block.

        Args:
            hidden_states: (B, T*S, C), the tokens of a frame side by side.
            text: (B, L, C), projected.
            modulation: (B, 1 or T, 6, C); one row for all frames, or one for each.
            rope: What `RotaryEmbedding` returned for T positions.
            num_frames: T.
            text_mask: Boolean (B, L), true where a token counts; None for all.

        Returns:
            (B, T*S, C).
        """
        x = hidden_states.unflatten(1, (num_frames, -1))  # (B, T, S, C)
        rows = (self.scale_shift_table + modulation)[:, :, None].unbind(3)  # 6 of (B, 1|T, 1, C)
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = rows
        x = x + gate * self._attend(modulate(x, shift, scale), rope)
        tokens = x.flatten(1, 2)
        x = (tokens + self.cross_attn(tokens, text, text_mask)).view_as(x)
        x = x + mlp_gate * self.mlp(modulate(x, mlp_shift, mlp_scale))
        return x.flatten(1, 2)

    def _attend(self, x: torch.Tensor, rope: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        batch = x.shape[0]
        if not self.temporal:
            return self.attn(x.flatten(0, 1)).unflatten(0, (batch, -1))
        tracks = x.transpose(1, 2).flatten(0, 1)  # (B*S, T, C)
        return self.attn(tracks, rope).unflatten(0, (batch, -1)).transpose(1, 2)
