"""Text to video with Open-Sora 1.2, as a diffusers pipeline."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from diffusers.video_processor import VideoProcessor
from transformers import T5EncoderModel, T5Tokenizer

from foresight.config import UserError
from foresight.models.opensora.frame_mask import FrameMask
from foresight.models.opensora.prompts import clean_prompt, with_aesthetic_score
from foresight.models.opensora.scheduler import OpenSoraFlowScheduler
from foresight.models.opensora.transformer import STDiT3Transformer3DModel
from foresight.models.opensora.vae import AutoencoderKLOpenSora

IMAGE_FPS = 120  # the rate that the model was told of single images
CALLBACK_TENSORS = ("latents", "prompt_embeds", "prompt_attention_mask")


@dataclasses.dataclass
class OpenSoraPipelineOutput(BaseOutput):
    """What a call returns.

    Attributes:
        frames: A list of frames per video ("pil"), (B, T, H, W, 3) in 0..1 ("np"),
            (B, T, 3, H, W) in 0..1 ("pt") or latents (B, C, T', h, w) ("latent").
    """

    frames: torch.Tensor | np.ndarray | list[list[PIL.Image.Image]]


class OpenSoraPipeline(DiffusionPipeline):
    """Open-Sora 1.2 (arXiv 2412.20404): T5, STDiT3, rectified flow and a video VAE.

    A saved pipeline names this package's modules in its `model_index.json`, so it loads by
    `OpenSoraPipeline.from_pretrained`, not by that of diffusers' base class.
    """

    model_cpu_offload_seq = "text_encoder->transformer->vae"
    _callback_tensor_inputs = CALLBACK_TENSORS

    def __init__(
        self,
        tokenizer: T5Tokenizer,
        text_encoder: T5EncoderModel,
        vae: AutoencoderKLOpenSora,
        transformer: STDiT3Transformer3DModel,
        scheduler: OpenSoraFlowScheduler,
    ) -> None:
        super().__init__()
        self.register_modules(
            tokenizer=tokenizer,
            text_encoder=text_encoder,
            vae=vae,
            transformer=transformer,
            scheduler=scheduler,
        )
        self.vae_scale_factor = vae.spatial_scale_factor
        self.vae_scale_factor_temporal = vae.temporal_vae.time_factor
        self.video_processor = VideoProcessor(vae_scale_factor=self.vae_scale_factor)
        self._guidance_scale, self._num_timesteps, self._interrupt = 1.0, 0, False

    @classmethod
    def from_pretrained(cls, folder: str | Path, **kwargs: Any) -> "OpenSoraPipeline":
        """Like `DiffusionPipeline.from_pretrained`, from safetensors only.

        Raises:
            UserError: If weights do not fit, or pickled ones are asked for.
        """
        if kwargs.pop("use_safetensors", None) is False:
            raise UserError("use_safetensors=False would unpickle; convert the weights first")
        return super().from_pretrained(folder, use_safetensors=True, **kwargs)

    @property
    def guidance_scale(self) -> float:
        """Of the current or latest call."""
        return self._guidance_scale

    @property
    def num_timesteps(self) -> int:
        """Denoising steps of the current or latest call."""
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        """Set `_interrupt` in a callback, and the remaining steps are left out."""
        return self._interrupt

    def encode_prompt(
        self, prompt: list[str], device: torch.device | str | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Text embeddings (B, L, D), zero where a prompt has no token, and their mask (B, L)."""
        device = device or self._execution_device
        tokens = self.tokenizer(
            prompt,
            padding="max_length",
            max_length=self.transformer.config.model_max_length,
            truncation=True,
            return_tensors="pt",
        ).to(device)
        mask = tokens.attention_mask
        embeds = self.text_encoder(tokens.input_ids, attention_mask=mask)[0]
        return embeds * mask[..., None].to(embeds.dtype), mask

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        height: int = 240,
        width: int = 426,
        num_frames: int = 51,
        num_inference_steps: int = 30,
        guidance_scale: float = 7.0,
        fps: float = 24.0,
        aesthetic_score: float | None = 6.5,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        frame_mask: torch.Tensor | None = None,
        prompt_embeds: torch.Tensor | None = None,
        prompt_attention_mask: torch.Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[[Any, int, Any, dict], dict] | None = None,
        callback_on_step_end_tensor_inputs: tuple[str, ...] | list[str] = ("latents",),
    ) -> OpenSoraPipelineOutput | tuple[Any]:
        """Generate videos. The defaults are those of the release.

        Args:
            prompt: One prompt or several; they are cleaned as `clean_prompt` does.
            height: Pixels asked for. The video has the multiple of 8 below; the timesteps and the
                model go by what was asked for.
            width: Likewise.
            num_frames: 1 for an image, or at least 17; 51, 102, 204, 408 are 2, 4, 8, 16 seconds.
            num_inference_steps: Denoising steps.
            guidance_scale: Classifier-free guidance; not above 1, it is left out.
            fps: Frames per second that the model is told of; for an image, 120 is taken.
            aesthetic_score: Added to prompts in words; None for none.
            generator: For the noise.
            latents: Start noise (B, C, T', h, w); its sides are those of the result. Where
                `frame_mask` is below 1, clean latents of the given frames.
            frame_mask: (B, T') in 0..1, see `FrameMask`; needs `latents`.
            prompt_embeds: What `encode_prompt` returns, in place of prompts.
            prompt_attention_mask: The mask that belongs to it.
            output_type: "pil", "np", "pt" or "latent".
            return_dict: Whether to return an object rather than a tuple.
            callback_on_step_end: Called as `f(pipe, step, timestep, tensors)`; tensors that it
                returns by name replace those of the loop.
            callback_on_step_end_tensor_inputs: Which tensors it gets: "latents", "prompt_embeds",
                "prompt_attention_mask".

        Raises:
            UserError: If arguments do not go together or are out of range.
        """
        self._check_inputs(prompt, prompt_embeds, latents, frame_mask, output_type)
        unknown = set(callback_on_step_end_tensor_inputs) - set(CALLBACK_TENSORS)
        if unknown:
            raise UserError(f"callbacks get {', '.join(CALLBACK_TENSORS)}, not {sorted(unknown)}")
        self._guidance_scale, self._interrupt = guidance_scale, False
        device = self._execution_device
        if prompt is not None:
            prompts = [prompt] if isinstance(prompt, str) else prompt
            texts = [with_aesthetic_score(clean_prompt(text), aesthetic_score) for text in prompts]
            prompt_embeds, prompt_attention_mask = self.encode_prompt(texts, device)
        assert prompt_embeds is not None
        if latents is None:
            size = self.vae.latent_size(num_frames, height, width)
            shape = (len(prompt_embeds), self.transformer.config.in_channels, *size)
            latents = randn_tensor(shape, generator, device, torch.float32)
        assert latents is not None
        self.scheduler.set_timesteps(
            num_inference_steps, device, height=height, width=width, num_frames=num_frames
        )
        self._num_timesteps = len(self.scheduler.timesteps)
        frames = None
        if frame_mask is not None:
            frames = FrameMask(frame_mask.to(device, torch.float32), self.scheduler)
        tensors = {
            "latents": latents.to(device, torch.float32),
            "prompt_embeds": prompt_embeds.to(device),
            "prompt_attention_mask": prompt_attention_mask,
        }
        told = {"fps": IMAGE_FPS if num_frames == 1 else fps, "height": height, "width": width}
        with self.progress_bar(total=self._num_timesteps) as progress_bar:
            for step, timestep in enumerate(self.scheduler.timesteps):
                if self.interrupt:
                    continue
                tensors["latents"] = self._denoise(tensors, timestep, frames, generator, told)
                if callback_on_step_end is not None:
                    shown = {name: tensors[name] for name in callback_on_step_end_tensor_inputs}
                    tensors.update(callback_on_step_end(self, step, timestep, shown) or {})
                progress_bar.update()
        video = tensors["latents"]
        if output_type != "latent":
            decoded = self.vae.decode(video.to(self.vae.dtype), num_frames).sample
            video = self.video_processor.postprocess_video(decoded.float(), output_type)
        self.maybe_free_model_hooks()
        return OpenSoraPipelineOutput(frames=video) if return_dict else (video,)

    def _denoise(
        self,
        tensors: dict[str, torch.Tensor],
        timestep: torch.Tensor,
        frames: FrameMask | None,
        generator: torch.Generator | list[torch.Generator] | None,
        told: dict[str, float],
    ) -> torch.Tensor:
        """Latents (B, C, T', h, w) after one step."""
        latents = tensors["latents"]
        text, text_mask = tensors["prompt_embeds"], tensors["prompt_attention_mask"]
        if frames is None:
            velocity = self._guided_velocity(latents, timestep, text, text_mask, None, told)
            return self.scheduler.step(velocity, timestep, latents, return_dict=False)[0]
        noise = randn_tensor(latents.shape, generator, latents.device, latents.dtype)
        active, entered = frames.active(timestep), frames.enter(latents, noise, timestep)
        velocity = self._guided_velocity(entered, timestep, text, text_mask, active, told)
        denoised = self.scheduler.step(velocity, timestep, entered, return_dict=False)[0]
        return frames.keep(denoised, latents, timestep)

    def _guided_velocity(
        self,
        latents: torch.Tensor,
        timestep: torch.Tensor,
        text: torch.Tensor,
        text_mask: torch.Tensor | None,
        frame_mask: torch.Tensor | None,
        told: dict[str, float],
    ) -> torch.Tensor:
        """Velocity (B, C, T', h, w) from one forward pass, in which the prompts come last.

        Without a prompt the model sees its null embedding, as long as the prompt it is paired with.
        """
        guided = self._guidance_scale > 1
        if guided:
            null = self.transformer.y_embedder.y_embedding[: text.shape[1]].to(text)
            text = torch.cat((null.expand_as(text), text))
            latents = torch.cat((latents, latents))
        velocity = self.transformer(
            hidden_states=latents,
            timestep=timestep.expand(len(latents)),
            encoder_hidden_states=text,
            encoder_attention_mask=text_mask,
            frame_mask=frame_mask,
            **told,
        ).sample[:, : latents.shape[1]]
        if not guided:
            return velocity
        without, with_prompt = velocity.chunk(2)
        return without + self._guidance_scale * (with_prompt - without)

    @staticmethod
    def _check_inputs(
        prompt: Any, prompt_embeds: Any, latents: Any, frame_mask: Any, output_type: str
    ) -> None:
        if (prompt is None) == (prompt_embeds is None):
            raise UserError("pass either `prompt` or `prompt_embeds`")
        if frame_mask is not None and latents is None:
            raise UserError("`frame_mask` needs `latents` that hold the given frames")
        if frame_mask is not None and frame_mask.shape != (len(latents), latents.shape[2]):
            raise UserError(
                f"`frame_mask` {tuple(frame_mask.shape)} must have a row per video and a "
                f"column per latent frame, {(len(latents), latents.shape[2])}"
            )
        if output_type not in ("pil", "np", "pt", "latent"):
            raise UserError(f"`output_type` must be pil, np, pt or latent, not {output_type!r}")
