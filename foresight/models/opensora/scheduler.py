"""Open-Sora 1.2's rectified flow: Euler steps whose times depend on the video's size and length."""

import dataclasses

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils import BaseOutput

from foresight.config import UserError

# The VAE makes 5 latent frames of 17; that is how the released model counts them here.
FRAMES_PER_CHUNK, LATENTS_PER_CHUNK = 17, 5


@dataclasses.dataclass
class OpenSoraFlowSchedulerOutput(BaseOutput):
    """What `step` returns.

    Attributes:
        prev_sample: (B, C, T, H, W), the sample at the next, lower noise level.
    """

    prev_sample: torch.Tensor


class OpenSoraFlowScheduler(SchedulerMixin, ConfigMixin):
    """Rectified flow (Liu et al., arXiv 2209.03003) with a shift of time towards noise.

    A sample at time t is (1 - t) x + t noise, and the model predicts x - noise. Times evenly spaced
    in (0, 1] are mapped by r t / (1 + (r - 1) t) (Esser et al., arXiv 2403.03206), where
    r = sqrt(pixels / base_resolution) * sqrt(latent frames / base_num_frames).

    Args:
        num_train_timesteps: The timestep of pure noise.
        use_timestep_transform: Whether to map the times.
        base_resolution: Pixels of a frame that needs no shift.
        base_num_frames: Latent frames of a video that needs no shift.
        prediction_type: What the model predicts; there is one choice.

    Attributes:
        timesteps: (S,) float32, falling from `num_train_timesteps`.
        sigmas: (S,), the share of noise in (0, 1].
    """

    order = 1

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        use_timestep_transform: bool = True,
        base_resolution: int = 512 * 512,
        base_num_frames: int = 1,
        prediction_type: str = "flow_prediction",
    ) -> None:
        if prediction_type != "flow_prediction":
            raise UserError(f"`prediction_type` must be 'flow_prediction', not {prediction_type!r}")
        self.timesteps = torch.empty(0)
        self.sigmas = torch.empty(0)

    def set_timesteps(
        self,
        num_inference_steps: int,
        device: str | torch.device | None = None,
        *,
        height: float | torch.Tensor | None = None,
        width: float | torch.Tensor | None = None,
        num_frames: int | torch.Tensor | None = None,
    ) -> None:
        """Choose the timesteps of a generation.

        Args:
            num_inference_steps: S.
            device: Where `timesteps` and `sigmas` will be.
            height: Of the video, in pixels. From tensors the shift is computed in their precision
                (the released pipeline passes bf16); of several elements, the first counts.
            width: Likewise.
            num_frames: Likewise, in frames; 1 for an image.

        Raises:
            UserError: If the transform needs a size that is not given, or there are 2 to 16 frames,
                for which it is not defined.
        """
        if num_inference_steps < 1:
            raise UserError(f"`num_inference_steps` must be at least 1, not {num_inference_steps}")
        end = self.config.num_train_timesteps
        times = [(1 - index / num_inference_steps) * end for index in range(num_inference_steps)]
        timesteps = torch.tensor(times, dtype=torch.float32)
        if self.config.use_timestep_transform:
            if height is None or width is None or num_frames is None:
                raise UserError(
                    "the timesteps depend on the video: pass `height`, `width` and `num_frames` to "
                    "set_timesteps, or build the scheduler with use_timestep_transform=False"
                )
            shift = self._shift(*map(_first, (height, width, num_frames)))
            times = timesteps / end
            # A shift below 1/2 can round the first time to just above 1.
            timesteps = (shift * times / (1 + (shift - 1) * times) * end).clamp(max=end)
        self.timesteps = timesteps.to(device)
        self.sigmas = self.timesteps / end

    def _shift(
        self, height: torch.Tensor, width: torch.Tensor, num_frames: torch.Tensor
    ) -> torch.Tensor:
        """How far the times move, r, as a 0-dim tensor."""
        if num_frames == 1:
            latent_frames = num_frames
        else:
            latent_frames = num_frames // FRAMES_PER_CHUNK * LATENTS_PER_CHUNK
        if latent_frames < 1:
            raise UserError(
                f"`num_frames` must be 1 or at least {FRAMES_PER_CHUNK}, not {int(num_frames)}"
            )
        in_space = (height * width / self.config.base_resolution).sqrt()
        return in_space * (latent_frames / self.config.base_num_frames).sqrt()

    def step(
        self,
        model_output: torch.Tensor,
        timestep: float | torch.Tensor,
        sample: torch.Tensor,
        return_dict: bool = True,
    ) -> OpenSoraFlowSchedulerOutput | tuple[torch.Tensor]:
        """One Euler step to the timestep below, or to 0 from the last.

        It keeps no count of steps, and reads nothing from the device.

        Args:
            model_output: Velocity, data minus noise, in the sample's shape.
            timestep: One of `timesteps`.
            sample: (B, C, T, H, W).
            return_dict: Whether to return an object rather than a tuple.

        Returns:
            `prev_sample`, the sample at the next timestep, at least in float32.
        """
        following = self.timesteps.masked_fill(self.timesteps >= timestep, 0).max()
        duration = (timestep - following) / self.config.num_train_timesteps
        # As a tensor with dimensions, float32 time lifts a sample in lower precision.
        previous = sample + model_output * duration.view(*[1] * sample.ndim)
        return OpenSoraFlowSchedulerOutput(previous) if return_dict else (previous,)

    def add_noise(
        self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
    ) -> torch.Tensor:
        """Samples at noise levels `timesteps` (0-dim or (B,)) from clean ones and noise."""
        times = timesteps / self.config.num_train_timesteps
        times = times.view(-1, *[1] * (original_samples.ndim - 1))
        return (1 - times) * original_samples + times * noise


def _first(value: float | torch.Tensor) -> torch.Tensor:
    if isinstance(value, torch.Tensor):
        return value.detach().cpu().reshape(-1)[0]
    return torch.tensor(float(value))
