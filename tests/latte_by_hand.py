"""Latte written out by hand, and spies on its blocks: what the runtime is compared with."""

import contextlib
import dataclasses
from collections.abc import Iterator

import torch

from foresight.config import GenerationConfig, Prompt
from foresight.plan import COMPUTE, REUSE, Plan

PROMPT = "a red circle moves left"
STEPS = 10
NUM_BLOCKS = 12
PROFILED_PROMPTS = [
    Prompt(PROMPT, "slow"),
    Prompt("a blue square spins"),
    Prompt("two dots", "fast"),
]
PROFILED_CONFIG = GenerationConfig(32, 32, 16, 5, 4.0)


@torch.no_grad()
def sample(pipe, *, seed=0, size=(32, 32), steps=STEPS, prompt=PROMPT, **others) -> torch.Tensor:
    """Final latents of a plain call of the pipeline."""
    return pipe(
        prompt,
        height=size[0],
        width=size[1],
        video_length=16,
        num_inference_steps=steps,
        guidance_scale=4.0,
        generator=torch.Generator("cpu").manual_seed(seed),
        output_type="latent",
        **others,
    ).frames


def ordered_blocks(transformer) -> list[torch.nn.Module]:
    """Spatial 0, temporal 0, spatial 1, ..."""
    pairs = zip(
        transformer.transformer_blocks, transformer.temporal_transformer_blocks, strict=True
    )
    return [block for pair in pairs for block in pair]


def to_temporal(tokens: torch.Tensor, batch: int) -> torch.Tensor:
    """(B * frames, patches, D) to (B * patches, frames, D); its own inverse."""
    grid = tokens.reshape(batch, -1, *tokens.shape[1:])
    return grid.permute(0, 2, 1, 3).reshape(-1, grid.shape[1], tokens.shape[-1])


class HandWrittenLatte:
    """One generation under a plan, unfused: every block keeps its residuals in its own layout."""

    def __init__(self, model, plan: Plan) -> None:
        self.model, self.plan, self.step = model, plan, 0
        self.kept = [[] for _ in range(plan.shape[1])]
        self.outputs = []

    def block(self, index: int, stream: torch.Tensor, *conditions) -> torch.Tensor:
        action, kept = self.plan.actions[self.step, index], self.kept[index]
        if action == COMPUTE:
            module = ordered_blocks(self.model)[index]
            text, timestep = conditions
            output = type(module).forward(module, stream, None, text, None, timestep)
            kept.append(output - stream)
            return output
        if action == REUSE:
            return stream + kept[-1]
        beta = float(self.plan.coefficients[self.step, index])
        return stream + (kept[-1] + beta * (kept[-1] - kept[-2]))

    def __call__(self, hidden_states, timestep, encoder_hidden_states, **_) -> tuple[torch.Tensor]:
        if not self.plan.at_output or self.plan.actions[self.step, 0] == COMPUTE:
            output = self.whole(hidden_states, timestep, encoder_hidden_states)
            self.outputs.insert(0, output)
        if self.plan.at_output:
            output = weighted(self.plan.weights[self.step].tolist(), self.outputs)
        self.step += 1
        return (output,)

    def whole(self, hidden_states, timestep, encoder_hidden_states) -> torch.Tensor:
        model = self.model
        batch, channels, frames, height, width = hidden_states.shape
        size = model.config.patch_size
        rows, columns = height // size, width // size
        images = hidden_states.permute(0, 2, 1, 3, 4).reshape(-1, channels, height, width)
        stream = model.pos_embed(images)
        condition, embedded = model.adaln_single(
            timestep,
            {"resolution": None, "aspect_ratio": None},
            batch_size=batch,
            hidden_dtype=stream.dtype,
        )
        text = model.caption_projection(encoder_hidden_states).repeat_interleave(frames, dim=0)
        for layer in range(len(model.transformer_blocks)):
            per_frame = condition.repeat_interleave(frames, dim=0)
            stream = to_temporal(self.block(2 * layer, stream, text, per_frame), batch)
            if layer == 0:
                stream = stream + model.temp_pos_embed
            per_patch = condition.repeat_interleave(rows * columns, dim=0)
            stream = to_temporal(self.block(2 * layer + 1, stream, None, per_patch), batch)
        modulation = model.scale_shift_table + embedded.repeat_interleave(frames, dim=0)[:, None]
        stream = model.norm_out(stream) * (1 + modulation[:, 1:]) + modulation[:, :1]
        pixels = model.proj_out(stream).reshape(batch, frames, rows, columns, size, size, -1)
        return pixels.permute(0, 6, 1, 2, 4, 3, 5).reshape(batch, -1, frames, height, width)


def weighted(weights, outputs: list[torch.Tensor]) -> torch.Tensor:
    """What a step of a plan at the output returns; `outputs` has the latest first."""
    pairs = zip(weights, outputs, strict=False)
    return sum((weight * output for weight, output in pairs), torch.zeros(()))


def sample_by_hand(pipe, plan: Plan, **settings) -> torch.Tensor:
    """Final latents of the pipeline's loop around the hand-written transformer."""
    transformer = pipe.transformer
    original = transformer.forward
    transformer.forward = HandWrittenLatte(transformer, plan)
    try:
        return sample(pipe, steps=plan.shape[0], **settings)
    finally:
        transformer.forward = original


@dataclasses.dataclass(frozen=True)
class Call:
    """One executed forward of a block."""

    step: int
    block: int
    stream: torch.Tensor
    output: torch.Tensor

    @property
    def residual(self) -> torch.Tensor:
        return self.output - self.stream


@contextlib.contextmanager
def watch_blocks(pipe) -> Iterator[list[Call]]:
    """What really runs: wrappers around the blocks' forwards; enter before enabling a policy."""
    calls: list[Call] = []
    step = -1

    def next_step(*_):
        nonlocal step
        step += 1

    def watched(index, forward):
        def run(stream, *args, **kwargs):
            output = forward(stream, *args, **kwargs)
            calls.append(Call(step, index, stream.clone(), output.clone()))
            return output

        return run

    blocks = ordered_blocks(pipe.transformer)
    originals = [block.forward for block in blocks]
    handle = pipe.transformer.register_forward_pre_hook(next_step)
    for index, block in enumerate(blocks):
        block.forward = watched(index, originals[index])
    try:
        yield calls
    finally:
        handle.remove()
        for block, original in zip(blocks, originals, strict=True):
            block.forward = original
