"""Open-Sora 1.2's video VAE: an image VAE on every frame, then a temporal VAE on the latents."""

from typing import Any

import torch
from diffusers import AutoencoderKL
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.models.modeling_utils import ModelMixin
from torch import nn

from foresight.config import UserError
from foresight.models.opensora.loading import StrictLoading
from foresight.models.opensora.temporal_vae import TemporalVAE

# The image VAE is that of SDXL.
SPATIAL_DEFAULTS = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
}


class _SpatialVAE(nn.Module):
    """Holds the image VAE under the name that the checkpoint's keys have."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.module = AutoencoderKL(**{**SPATIAL_DEFAULTS, **config})


class LatentDistribution:
    """The posterior of a video, in two stages: the second starts from a draw of the first.

    Draws are made in the order of the released model: micro-batches of frames, then chunks.
    """

    def __init__(self, vae: "AutoencoderKLOpenSora", moments: torch.Tensor, batch: int) -> None:
        self._vae, self._moments, self._batch = vae, moments, batch

    def sample(self, generator: torch.Generator | None = None) -> torch.Tensor:
        """Random latents (B, 4, T', h, w), ready for the transformer."""
        return self._latents(lambda posterior: posterior.sample(generator))

    def mode(self) -> torch.Tensor:
        """Latents (B, 4, T', h, w) without chance in either stage."""
        return self._latents(lambda posterior: posterior.mode())

    def _latents(self, pick: Any) -> torch.Tensor:
        vae = self._vae
        parts = self._moments.split(vae.config.micro_batch_size)  # (frames, 8, h, w)
        frames = torch.cat([pick(DiagonalGaussianDistribution(part)) for part in parts])
        x = frames.unflatten(0, (self._batch, -1)).transpose(1, 2)  # (B, 4, T, h, w)
        x = x * vae.config.spatial_latent_factor
        chunks = [
            pick(DiagonalGaussianDistribution(vae.temporal_vae.encode(chunk)))
            for chunk in x.split(vae.config.micro_frame_size, dim=2)
        ]
        return (torch.cat(chunks, dim=2) - vae.shift) / vae.scale


class AutoencoderKLOpenSora(StrictLoading, ModelMixin, ConfigMixin):
    """Videos to latents 8 times smaller in space and about 4 in time (17 frames to 5), and back.

    Chunks of `micro_frame_size` frames are encoded and decoded independently. The defaults and the
    names in the state dict are those of `hpcai-tech/OpenSora-VAE-v1.2`. Weights load strictly.

    Args:
        vae_2d: Arguments of diffusers' `AutoencoderKL` that differ from the SDXL VAE's.
        vae_temporal: Arguments of `TemporalVAE` that differ from the released ones.
        micro_frame_size: Frames per chunk.
        micro_batch_size: Frames that the image VAE takes at once.
        shift, scale: Of the latents, one number per channel.
        spatial_latent_factor: Factor on the image VAE's latents. Its own `scaling_factor` is not
            looked at: the released model was trained with another.

    Raises:
        UserError: If `vae_temporal` asks for another activation than swish.
    """

    @register_to_config
    def __init__(
        self,
        vae_2d: dict[str, Any] | None = None,
        vae_temporal: dict[str, Any] | None = None,
        micro_frame_size: int = 17,
        micro_batch_size: int = 4,
        shift: tuple[float, ...] = (-0.10, 0.34, 0.27, 0.98),
        scale: tuple[float, ...] = (3.85, 2.32, 2.33, 3.06),
        spatial_latent_factor: float = 0.18215,
    ) -> None:
        super().__init__()
        activation = (vae_temporal or {}).get("activation_fn", "swish")
        if activation != "swish":
            raise UserError(f"`activation_fn` must be 'swish', not {activation!r}")
        self.spatial_vae = _SpatialVAE(vae_2d or {})
        self.temporal_vae = TemporalVAE(**(vae_temporal or {}))
        # The checkpoint's keys, which register_buffer refuses because the config has them too.
        self._buffers["shift"] = torch.tensor(shift).view(1, -1, 1, 1, 1)
        self._buffers["scale"] = torch.tensor(scale).view(1, -1, 1, 1, 1)

    def __getattr__(self, name: str) -> Any:  # buffers before the config's entries of the same name
        buffers = self.__dict__.get("_buffers", {})
        return buffers[name] if name in buffers else super().__getattr__(name)

    @property
    def spatial_scale_factor(self) -> int:
        """Pixels per latent, along a side."""
        return 2 ** (len(self.spatial_vae.module.config.block_out_channels) - 1)

    def latent_size(self, num_frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Latent frames, rows and columns of a video; sides are rounded down."""
        chunks, rest = divmod(num_frames, self.config.micro_frame_size)
        latents_of = self.temporal_vae.latent_frames
        frames = chunks * latents_of(self.config.micro_frame_size) + latents_of(rest)
        return frames, height // self.spatial_scale_factor, width // self.spatial_scale_factor

    def encode(
        self, x: torch.Tensor, return_dict: bool = True
    ) -> AutoencoderKLOutput | tuple[LatentDistribution]:
        """The posterior of videos.

        Args:
            x: (B, 3, T, H, W) in -1..1.
            return_dict: Whether to return an object rather than a tuple.

        Returns:
            `latent_dist`, whose `sample(generator)` and `mode()` are latents for the transformer.
        """
        frames = x.transpose(1, 2).flatten(0, 1)  # (B*T, 3, H, W)
        spatial = self.spatial_vae.module
        moments = torch.cat(
            [
                spatial.encode(part).latent_dist.parameters
                for part in frames.split(self.config.micro_batch_size)
            ]
        )
        posterior = LatentDistribution(self, moments, len(x))
        return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)

    def decode(
        self, z: torch.Tensor, num_frames: int, return_dict: bool = True
    ) -> DecoderOutput | tuple[torch.Tensor]:
        """Videos of latents.

        Args:
            z: (B, 4, T', h, w), as the transformer has them.
            num_frames: T of the video; 18 frames and 20 have the same number of latents.
            return_dict: Whether to return an object rather than a tuple.

        Returns:
            `sample` (B, 3, T, 8h, 8w), about -1..1.

        Raises:
            UserError: If a video of `num_frames` has another number of latents.
        """
        latent_frames = self.latent_size(num_frames, 0, 0)[0]
        if z.shape[2] != latent_frames:
            raise UserError(
                f"{num_frames} frames are {latent_frames} latents, not {z.shape[2]}; pass the "
                "`num_frames` that the latents were made for"
            )
        z = z * self.scale + self.shift
        size = self.config.micro_frame_size
        chunks = z.split(self.temporal_vae.latent_frames(size), dim=2)
        lengths = [min(size, num_frames - start) for start in range(0, num_frames, size)]
        x = torch.cat(
            [
                self.temporal_vae.decode(chunk, length)
                for chunk, length in zip(chunks, lengths, strict=True)
            ],
            dim=2,
        )
        frames = (x / self.config.spatial_latent_factor).transpose(1, 2).flatten(0, 1)
        parts = frames.split(self.config.micro_batch_size)
        video = torch.cat([self.spatial_vae.module.decode(part).sample for part in parts])
        sample = video.unflatten(0, (len(z), -1)).transpose(1, 2)
        return DecoderOutput(sample=sample) if return_dict else (sample,)
