"""Open-Sora 1.2's denoiser, STDiT3: spatial and temporal blocks in turn (arXiv 2412.20404)."""

import math

import torch
import torch.nn.functional as F  # noqa: N812
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.modeling_utils import ModelMixin
from torch import nn

from foresight.config import UserError
from foresight.models.opensora.block import STDiT3Block, modulate
from foresight.models.opensora.embeddings import (
    RotaryEmbedding,
    SinusoidalEmbedder,
    TextEmbedder,
    position_embedding,
)
from foresight.models.opensora.loading import StrictLoading

PIXELS_PER_LATENT = 8
DEFAULT_FPS = 24.0


class PatchEmbed(nn.Module):
    """Patches of the latents as tokens; what does not fill a patch is padded with zeros."""

    def __init__(self, in_channels: int, hidden_size: int, patch_size: tuple[int, ...]) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv3d(in_channels, hidden_size, patch_size, stride=patch_size)

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """Embed latents (B, C, T, H, W) as (B, hidden_size, T', H', W')."""
        sides = zip(reversed(latents.shape[2:]), reversed(self.patch_size), strict=True)
        padding = [amount for side, patch in sides for amount in (0, -side % patch)]
        return self.proj(F.pad(latents, padding))


class FinalLayer(nn.Module):
    """From tokens to the values of their patches, channels innermost."""

    def __init__(self, hidden_size: int, num_values: int) -> None:
        super().__init__()
        self.scale_shift_table = nn.Parameter(torch.randn(2, hidden_size) / hidden_size**0.5)
        self.linear = nn.Linear(hidden_size, num_values)

    def forward(
        self,
        hidden_states: torch.Tensor,
        noisy: torch.Tensor,
        clean: torch.Tensor,
        frame_mask: torch.Tensor | None,
    ) -> torch.Tensor:
        """Map (B, T, S, C) to (B, T, S, values).

        Frames that `frame_mask` (B, T) excludes are modulated twice, by the noise level `noisy`
        (B, C) and then by that of clean frames, `clean`. That is how the released model was
        trained; sampling does not look at those frames.
        """
        x = modulate(hidden_states, *self._shift_and_scale(noisy))
        if frame_mask is not None:
            twice = modulate(x, *self._shift_and_scale(clean))
            x = torch.where(frame_mask[:, :, None, None], x, twice)
        return self.linear(x)

    def _shift_and_scale(self, embedding: torch.Tensor) -> tuple[torch.Tensor, ...]:
        rows = self.scale_shift_table + embedding[:, None]  # (B, 2, C)
        return rows[:, None, None].unbind(3)


class STDiT3Transformer3DModel(StrictLoading, ModelMixin, ConfigMixin):
    """The spatial-temporal DiT of Open-Sora 1.2; the defaults are those of STDiT3-XL/2.

    The names in its state dict are those of the checkpoint `hpcai-tech/OpenSora-STDiT-v3`, and so
    are the constructor's. Weights load strictly.

    Args:
        input_size: Not used: sizes come with the latents. Kept for the released config.
        input_sq_size: Side in pixels of the square frame that position embeddings refer to.
        in_channels: Channels of the latents.
        patch_size: Latent frames, rows and columns per token.
        hidden_size: Width C; a multiple of 4 and of `num_heads`.
        depth: Number of spatial blocks and of temporal blocks.
        num_heads: Attention heads.
        mlp_ratio: Width of the MLP over C.
        class_dropout_prob: Of the released training; not used.
        pred_sigma: Whether the output has a second half, which rectified flow does not use.
        drop_path: Of the released training; not used.
        qk_norm: Normalise queries and keys in self-attention.
        caption_channels: Width of the text embeddings.
        model_max_length: Length L of the null text embedding.

    Raises:
        UserError: If `hidden_size` is not a multiple of 4 and of `num_heads`.
    """

    _no_split_modules = ("STDiT3Block",)
    _repeated_blocks = ("STDiT3Block",)

    @register_to_config
    def __init__(
        self,
        input_size: tuple[int | None, int | None, int | None] = (None, None, None),
        input_sq_size: int = 512,
        in_channels: int = 4,
        patch_size: tuple[int, int, int] = (1, 2, 2),
        hidden_size: int = 1152,
        depth: int = 28,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
        class_dropout_prob: float = 0.1,
        pred_sigma: bool = True,
        drop_path: float = 0.0,
        qk_norm: bool = True,
        caption_channels: int = 4096,
        model_max_length: int = 300,
    ) -> None:
        super().__init__()
        if hidden_size % num_heads or hidden_size % 4:
            raise UserError(
                f"`hidden_size` {hidden_size} is not a multiple of 4 and of {num_heads} `num_heads`"
            )
        self.out_channels = in_channels * (2 if pred_sigma else 1)
        self.rope = RotaryEmbedding(hidden_size // num_heads)
        self.x_embedder = PatchEmbed(in_channels, hidden_size, tuple(patch_size))
        self.t_embedder = SinusoidalEmbedder(hidden_size)
        self.fps_embedder = SinusoidalEmbedder(hidden_size)
        self.t_block = nn.Sequential(nn.SiLU(), nn.Linear(hidden_size, 6 * hidden_size))
        self.y_embedder = TextEmbedder(caption_channels, hidden_size, model_max_length)

        def stack(*, temporal: bool) -> nn.ModuleList:
            shape = (hidden_size, num_heads, mlp_ratio)
            return nn.ModuleList(
                STDiT3Block(*shape, qk_norm=qk_norm, temporal=temporal) for _ in range(depth)
            )

        self.spatial_blocks = stack(temporal=False)
        self.temporal_blocks = stack(temporal=True)
        self.final_layer = FinalLayer(hidden_size, math.prod(patch_size) * self.out_channels)

    def forward(
        self,
        hidden_states: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        encoder_attention_mask: torch.Tensor | None = None,
        frame_mask: torch.Tensor | None = None,
        fps: float | torch.Tensor | None = None,
        height: float | torch.Tensor | None = None,
        width: float | torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> Transformer2DModelOutput | tuple[torch.Tensor]:
        """Predict the velocity from noise to data.

        Where a tensor of a row per sample may have fewer rows than there are samples, it is
        repeated, so that both branches of guidance share it.

        Args:
            hidden_states: Latents (B, in_channels, T, H, W).
            timestep: (B,), 1000 for pure noise and 0 for data.
            encoder_hidden_states: Text embeddings (B, L, caption_channels).
            encoder_attention_mask: (B or fewer, L), non-zero where a text token counts; every row
                needs one. None for all tokens.
            frame_mask: Boolean (B or fewer, T); frames where it is false are taken as clean
                (timestep 0) and condition the others. None for all true.
            fps: Frames per second, a number or (B or fewer,); 24 by default, 120 for images.
            height: Pixels of the decoded video, a number, or a tensor of which the first element
                counts; by default 8 per latent.
            width: Likewise.
            return_dict: Whether to return an object rather than a tuple.

        Returns:
            `sample` (B, out_channels, T, H, W) in float32: the velocity, data minus noise, in the
            first `in_channels` channels.

        Raises:
            UserError: If B is no multiple of the rows of a tensor that is repeated.
        """
        batch, _, *sides = hidden_states.shape
        device, dtype = hidden_states.device, self.x_embedder.proj.weight.dtype
        pixels_high = PIXELS_PER_LATENT * sides[1] if height is None else _first(height)
        pixels_wide = PIXELS_PER_LATENT * sides[2] if width is None else _first(width)
        x = self._embed(hidden_states.to(dtype), (pixels_high * pixels_wide) ** 0.5)
        num_frames, rows, columns = x.shape[1:4]
        noisy, clean = self._embed_time(timestep.to(device, dtype), fps)  # (B, C)
        modulation = self.t_block(noisy).unflatten(-1, (6, -1))[:, None]  # (B, 1, 6, C)
        if frame_mask is not None:
            frame_mask = _repeat(frame_mask.to(device, torch.bool), batch)
            of_clean = self.t_block(clean).unflatten(-1, (6, -1))[:, None]
            modulation = torch.where(frame_mask[:, :, None, None], modulation, of_clean)
        text = self.y_embedder(encoder_hidden_states.to(dtype))  # (B, L, C)
        text_mask = None
        if encoder_attention_mask is not None:
            text_mask = _repeat(encoder_attention_mask.to(device, torch.bool), batch)

        x, rope = x.flatten(1, 3), self.rope(num_frames)  # (B, T'*S, C)
        for spatial, temporal in zip(self.spatial_blocks, self.temporal_blocks, strict=True):
            x = spatial(x, text, modulation, rope, num_frames, text_mask)
            x = temporal(x, text, modulation, rope, num_frames, text_mask)
        x = self.final_layer(x.unflatten(1, (num_frames, -1)), noisy, clean, frame_mask)
        sample = self._unpatchify(x, rows, columns)[..., : sides[0], : sides[1], : sides[2]].float()
        return Transformer2DModelOutput(sample=sample) if return_dict else (sample,)

    def _embed(self, latents: torch.Tensor, side: float | torch.Tensor) -> torch.Tensor:
        """Tokens (B, T', H', W', C) of latents, for a video as large as a square of a side."""
        x = self.x_embedder(latents).permute(0, 2, 3, 4, 1)
        scale = side / self.config.input_sq_size
        places = position_embedding(x.shape[-1], x.shape[2], x.shape[3], scale, x.device)
        return x + places.to(x.dtype).view(x.shape[2:])

    def _embed_time(
        self, timestep: torch.Tensor, fps: float | torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings (B, C) of the noise level and of no noise, both with the frame rate's.

        In bf16 the released model sees timesteps (B,) in bf16, so their rounding belongs to it.
        """
        if not isinstance(fps, torch.Tensor):
            fps = torch.full((1,), DEFAULT_FPS if fps is None else fps, device=timestep.device)
        rate = self.fps_embedder(fps.to(timestep.device).reshape(-1))
        rate = _repeat(rate, len(timestep))
        return self.t_embedder(timestep) + rate, self.t_embedder(torch.zeros_like(timestep)) + rate

    def _unpatchify(self, values: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
        """(B, T', S, pt*ph*pw*channels) -> (B, channels, T, H, W)."""
        x = values.unflatten(2, (rows, columns))
        x = x.unflatten(-1, (*self.x_embedder.patch_size, self.out_channels))
        x = x.permute(0, 7, 1, 4, 2, 5, 3, 6)  # (B, channels, T', pt, H', ph, W', pw)
        return x.flatten(6, 7).flatten(4, 5).flatten(2, 3)


def _first(value: float | torch.Tensor) -> float | torch.Tensor:
    return value.reshape(-1)[0].float() if isinstance(value, torch.Tensor) else value


def _repeat(rows: torch.Tensor, batch: int) -> torch.Tensor:
    """Repeat all rows of a tensor until there are `batch`.

    Raises:
        UserError: If `batch` is no multiple of the rows there are.
    """
    if batch % len(rows):
        raise UserError(
            f"{len(rows)} rows do not divide a batch of {batch}; give one row per sample, or one "
            "per prompt"
        )
    return rows.repeat(batch // len(rows), *[1] * (rows.ndim - 1))
