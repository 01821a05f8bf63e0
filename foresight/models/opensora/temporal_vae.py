"""The second half of Open-Sora 1.2's VAE: it makes latents of single frames fewer in time.

Convolutions see the past only. GroupNorm, however, runs over all frames of a chunk.
"""

import itertools
import math

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn


class CausalConv3d(nn.Module):
    """A 3D convolution of zero-padded input, in time padded in front only."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        time_stride: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__()
        side = kernel_size // 2
        self.padding = (side, side, side, side, kernel_size - time_stride, 0)
        self.conv = nn.Conv3d(
            in_channels, out_channels, kernel_size, stride=(time_stride, 1, 1), bias=bias
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Convolve (B, in, T, h, w) to (B, out, T / time_stride, h, w)."""
        return self.conv(F.pad(x, self.padding))


class ResBlock(nn.Module):
    """Norm, SiLU, convolution, twice, beside a shortcut."""

    def __init__(self, in_channels: int, out_channels: int, num_groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(num_groups, in_channels)
        self.conv1 = CausalConv3d(in_channels, out_channels, 3, bias=False)
        self.norm2 = nn.GroupNorm(num_groups, out_channels)
        self.conv2 = CausalConv3d(out_channels, out_channels, 3, bias=False)
        self.conv3 = None
        if in_channels != out_channels:
            self.conv3 = CausalConv3d(in_channels, out_channels, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, in, T, h, w) to (B, out, T, h, w)."""
        residual = self.conv1(F.silu(self.norm1(x)))
        residual = self.conv2(F.silu(self.norm2(residual)))
        return residual + (x if self.conv3 is None else self.conv3(x))


def _res_blocks(in_channels: int, out_channels: int, count: int, num_groups: int) -> nn.Sequential:
    widths = [in_channels] + [out_channels] * count
    return nn.Sequential(
        *(ResBlock(before, after, num_groups) for before, after in itertools.pairwise(widths))
    )


class TemporalEncoder(nn.Module):
    """Latent frames (B, in_out_channels, T, h, w) to features (B, 2 * latent, T / factor, h, w)."""

    def __init__(
        self,
        in_out_channels: int,
        latent_channels: int,
        widths: list[int],
        temporal_downsample: list[bool],
        num_res_blocks: int,
        num_groups: int,
    ) -> None:
        super().__init__()
        self.conv_in = CausalConv3d(in_out_channels, widths[0], 3, bias=False)
        self.block_res_blocks = nn.ModuleList(
            _res_blocks(before, after, num_res_blocks, num_groups)
            for before, after in itertools.pairwise([widths[0], *widths])
        )
        self.conv_blocks = nn.ModuleList(
            CausalConv3d(width, width, 3, time_stride=2) if down else nn.Identity()
            for width, down in zip(widths[:-1], temporal_downsample, strict=True)
        )
        self.res_blocks = _res_blocks(widths[-1], widths[-1], num_res_blocks, num_groups)
        self.norm1 = nn.GroupNorm(num_groups, widths[-1])
        self.conv2 = CausalConv3d(widths[-1], 2 * latent_channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """See the class."""
        x = self.conv_in(x)
        for level, blocks in enumerate(self.block_res_blocks):
            x = blocks(x)
            if level < len(self.conv_blocks):
                x = self.conv_blocks[level](x)
        x = self.res_blocks(x)
        return self.conv2(F.silu(self.norm1(x)))


class TemporalDecoder(nn.Module):
    """Latents (B, latent, T, h, w) to latent frames (B, in_out_channels, T * factor, h, w)."""

    def __init__(
        self,
        in_out_channels: int,
        latent_channels: int,
        widths: list[int],
        temporal_downsample: list[bool],
        num_res_blocks: int,
        num_groups: int,
    ) -> None:
        super().__init__()
        self.conv1 = CausalConv3d(latent_channels, widths[-1], 3)
        self.res_blocks = _res_blocks(widths[-1], widths[-1], num_res_blocks, num_groups)
        self.block_res_blocks = nn.ModuleList(
            _res_blocks(before, after, num_res_blocks, num_groups)
            for after, before in itertools.pairwise([*widths, widths[-1]])
        )
        # What goes from level i + 1 down to level i; each channel becomes two frames.
        self.conv_blocks = nn.ModuleList(
            CausalConv3d(width, 2 * width, 3) if up else nn.Identity()
            for width, up in zip(widths[1:], temporal_downsample, strict=True)
        )
        self.norm1 = nn.GroupNorm(num_groups, widths[0])
        self.conv_out = CausalConv3d(widths[0], in_out_channels, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """See the class."""
        x = self.res_blocks(self.conv1(x))
        for level in reversed(range(len(self.block_res_blocks))):
            x = self.block_res_blocks[level](x)
            if level > 0 and isinstance(self.conv_blocks[level - 1], CausalConv3d):
                x = self.conv_blocks[level - 1](x).unflatten(1, (-1, 2))  # (B, C, 2, T, h, w)
                x = x.transpose(2, 3).flatten(2, 3)
        return self.conv_out(F.silu(self.norm1(x)))


class TemporalVAE(nn.Module):
    """Encoder and decoder of one chunk of frames.

    The defaults are those of `hpcai-tech/OpenSora-VAE-v1.2`. `activation_fn` is part of its config;
    only swish exists.
    """

    def __init__(
        self,
        in_out_channels: int = 4,
        latent_embed_dim: int = 4,
        embed_dim: int = 4,
        filters: int = 128,
        num_res_blocks: int = 4,
        channel_multipliers: tuple[int, ...] = (1, 2, 2, 4),
        temporal_downsample: tuple[bool, ...] = (False, True, True),
        num_groups: int = 32,
        activation_fn: str = "swish",
    ) -> None:
        super().__init__()
        assert activation_fn == "swish"
        widths = [filters * multiplier for multiplier in channel_multipliers]
        shape = (widths, list(temporal_downsample), num_res_blocks, num_groups)
        self.time_factor = 2 ** sum(temporal_downsample)
        self.encoder = TemporalEncoder(in_out_channels, latent_embed_dim, *shape)
        self.quant_conv = CausalConv3d(2 * latent_embed_dim, 2 * embed_dim, 1)
        self.post_quant_conv = CausalConv3d(embed_dim, latent_embed_dim, 1)
        self.decoder = TemporalDecoder(in_out_channels, latent_embed_dim, *shape)

    def latent_frames(self, num_frames: int) -> int:
        """How many latents a chunk of frames becomes."""
        return math.ceil(num_frames / self.time_factor)

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """Moments (B, 2 * embed_dim, T', h, w) of frames (B, C, T, h, w), mean and log variance.

        A length that the time factor does not divide is filled up with zeros in front.
        """
        missing = -x.shape[2] % self.time_factor
        return self.quant_conv(self.encoder(F.pad(x, (0, 0, 0, 0, missing, 0))))

    def decode(self, z: torch.Tensor, num_frames: int) -> torch.Tensor:
        """Frames (B, C, num_frames, h, w) of latents; what was filled up in front is left out."""
        x = self.decoder(self.post_quant_conv(z))
        return x[:, :, -num_frames % self.time_factor :]
