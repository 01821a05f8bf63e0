"""What the denoisers are trained to predict, conditioned as their pipelines do it."""

import abc
from typing import Any

import torch

from foresight.models.clauses import ClauseLoss

TEXT_LENGTH = 32  # no caption is longer; one length for one compiled graph


class Objective(torch.nn.Module, abc.ABC):
    """Tokenizer, text encoder and transformer of a pipeline, and the loss that trains them.

    A tenth of `ClauseLoss` comes on top of every denoiser's own, for captions with two things.

    Attributes:
        stills_per_clip: Frames of a clip that `stills` keeps.
    """

    stills_per_clip = 1

    def __init__(self, pipe: Any) -> None:
        super().__init__()
        self.tokenizer, self.text_encoder = pipe.tokenizer, pipe.text_encoder
        self.transformer = pipe.transformer
        self.clauses = ClauseLoss(pipe.tokenizer, pipe.text_encoder.config.d_model)

    @abc.abstractmethod
    def stills(self, latents: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
        """Single frames (B, C, stills_per_clip, h, w) of clips (B, C, F, h, w), to train on."""

    def tokenize(self, captions: list[str], device: torch.device) -> Any:
        """Token ids and attention mask, padded to one length."""
        padding = {"padding": "max_length", "max_length": TEXT_LENGTH, "return_tensors": "pt"}
        return self.tokenizer(captions, **padding).to(device)

    def clause_loss(self, embeds: torch.Tensor, read: Any) -> torch.Tensor:
        """A tenth of `ClauseLoss` of embeddings (B, L, width) of what was read."""
        return 0.1 * self.clauses(embeds, read.input_ids, read.attention_mask)


def drop_captions(captions: list[str], rng: torch.Generator) -> list[str]:
    """Replace 12 % by the empty caption, for classifier-free guidance."""
    dropped = torch.rand(len(captions), generator=rng) < 0.12
    return ["" if drop else text for text, drop in zip(captions, dropped, strict=True)]


def stratified(count: int, rng: torch.Generator) -> torch.Tensor:
    """(count,) uniform in [0, 1), one per equal slice: every batch sees the whole range."""
    slices = torch.randperm(count, generator=rng) + torch.rand(count, generator=rng)
    return slices / count


class VelocityLoss(Objective):
    """v-prediction on a DDPM schedule, conditioned as LattePipeline does it.

    Low noise counts less, in the manner of min-SNR-5 weights (Hang et al. 2023); high noise, where
    a small redundant latent decides what it shows, keeps its full weight.

    The pipeline cuts prompt and empty prompt at the prompt's length, so the same positions are
    attended here, through a mask over the padded batch.
    """

    stills_per_clip = 4

    def __init__(self, pipe: Any) -> None:
        super().__init__(pipe)
        self.register_buffer("alphas", pipe.scheduler.alphas_cumprod, persistent=False)

    def stills(self, latents: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
        """Any frames, all at one noise level: the VAE has coded each alone."""
        picks = torch.randperm(latents.shape[2], generator=rng)[: self.stills_per_clip]
        return latents[:, :, picks]

    def forward(
        self, latents: torch.Tensor, captions: list[str], rng: torch.Generator
    ) -> torch.Tensor:
        """Loss of clean latents (B, C, F, h, w) and their captions; chance comes from `rng`.

        Of anything but a whole clip, each frame is denoised alone: without the temporal blocks.
        """
        device, batch = latents.device, latents.shape[0]
        mask = self.tokenize(captions, device).attention_mask
        read = self.tokenize(drop_captions(captions, rng), device)
        embeds = self.text_encoder(**read)[0]
        bias = (1.0 - mask.to(embeds.dtype))[:, None] * -1e4
        timesteps = (stratified(batch, rng) * 1000).long().clamp(max=999).to(device)
        alpha = self.alphas[timesteps].view(-1, 1, 1, 1, 1)
        noise = torch.randn(latents.shape, generator=rng).to(device)
        noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
        target = alpha.sqrt() * noise - (1 - alpha).sqrt() * latents
        predicted = self.transformer(
            noisy,
            timestep=timesteps,
            encoder_hidden_states=embeds,
            encoder_attention_mask=bias.repeat_interleave(latents.shape[2], dim=0),
            enable_temporal_attentions=latents.shape[2] == self.transformer.config.video_length,
        ).sample.chunk(2, dim=1)[0]
        snr = (alpha / (1 - alpha)).flatten()
        weight = (snr + 1).clamp(max=5.0) / (snr + 1)
        errors = (predicted.float() - target).pow(2).mean(dim=(1, 2, 3, 4))
        return (weight * errors).mean() + self.clause_loss(embeds, read)


class FlowMatchingLoss(Objective):
    """Rectified flow (Liu et al. 2022), conditioned as WanPipeline does it.

    Noise levels are drawn uniformly and shifted as the scheduler shifts its steps (Esser et al.
    2024, equation 23), so that training sees what sampling visits.
    """

    def __init__(self, pipe: Any) -> None:
        super().__init__(pipe)
        self.shift = pipe.scheduler.config.flow_shift

    def stills(self, latents: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
        """The first frame, which a causal VAE codes without those that follow."""
        return latents[:, :, : self.stills_per_clip]

    def forward(
        self, latents: torch.Tensor, captions: list[str], rng: torch.Generator
    ) -> torch.Tensor:
        """Loss of clean latents (B, C, F, h, w) and their captions; chance comes from `rng`."""
        device, batch = latents.device, latents.shape[0]
        tokens = self.tokenize(drop_captions(captions, rng), device)
        embeds = self.text_encoder(**tokens)[0] * tokens.attention_mask[..., None]
        uniform = 1 - stratified(batch, rng)
        sigma = (self.shift * uniform / (1 + (self.shift - 1) * uniform)).to(device)
        level = sigma.view(-1, 1, 1, 1, 1)
        noise = torch.randn(latents.shape, generator=rng).to(device)
        predicted = self.transformer(
            torch.lerp(latents, noise, level),
            timestep=sigma * 1000,
            encoder_hidden_states=embeds,
            return_dict=False,
        )[0]
        errors = (predicted.float() - (noise - latents)).pow(2)
        return errors.mean() + self.clause_loss(embeds, tokens)
