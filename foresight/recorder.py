"""What the profiler writes down of a generation: sketches, as blocks produce their residuals."""

from collections import defaultdict
from typing import NamedTuple

import numpy as np
import torch

from foresight.session import MODEL
from foresight.sketch import Sketcher

Tensors = tuple[torch.Tensor, ...]
Layout = tuple[int, int]  # which of a block's streams, and how many numbers it holds


class PredictionRecorder:
    """Sketches the model's predictions and the latents it was given.

    Args:
        sketcher: Two recorders that are to be compared share one.
        guidance_scale: Of the generation.
    """

    def __init__(self, sketcher: Sketcher, guidance_scale: float = 1.0) -> None:
        self.sketcher, self._guidance_scale = sketcher, guidance_scale
        self._outputs: dict[tuple[int, int], torch.Tensor] = {}
        self._latents: dict[int, torch.Tensor] = {}

    def __call__(
        self, step: int, branch: int, block: int, streams: Tensors, outputs: Tensors
    ) -> None:
        """Sketch what the model was given and predicts; pass it as the `tap` of a session."""
        if block != MODEL:
            return
        self._outputs[step, branch] = self._predicted(streams[0], outputs[0])
        if branch == 0 and _alike(streams[0], outputs):
            seen = streams[0][: len(streams[0]) // self._copies(streams[0])]
            self._latents[step] = _to_host(self.sketcher(seen))

    def _predicted(self, latents: torch.Tensor, prediction: torch.Tensor) -> torch.Tensor:
        """Sketch of the prediction, guided if both CFG branches are in the batch."""
        if prediction.ndim == latents.ndim:  # some predict a variance behind it
            prediction = prediction[:, : latents.shape[1]]
        sketches = [self.sketcher(part) for part in prediction.chunk(self._copies(prediction))]
        return _to_host(self._guided(*sketches))

    def _guided(self, *predictions: torch.Tensor) -> torch.Tensor:
        """What guidance makes of those without and with the prompt; one alone is guided already."""
        without, *with_prompt = predictions
        if not with_prompt:
            return without
        return without + self._guidance_scale * (with_prompt[0] - without)

    def _copies(self, batch: torch.Tensor) -> int:
        """How many CFG branches are in the batch."""
        return 2 if self._guidance_scale > 1 and len(batch) % 2 == 0 else 1

    def gram(self) -> np.ndarray:
        """Inner products (S, S) of the guided predictions of a run that computed every step."""
        return sum(((each @ each.mT).numpy() for each in self._predictions()), np.zeros(()))

    def reaction(self, plain: "PredictionRecorder", num_steps: int) -> np.ndarray:
        """How far this run was off the uncached one, (S, 3).

        Per step, over the mean energy of uncached predictions: the energy by which latents were
        off, its inner product with what the prediction was off by, and the energy of that. Zeros
        where nothing was computed, and where latents and predictions differ in form.
        """
        found = np.zeros((num_steps, 3))
        predictions, usual = self._predictions(), plain._predictions()
        if len(usual) > 1:
            return found
        steps = sorted({step for step, _ in self._outputs})
        scale = usual[0].square().sum(dim=1).mean()
        for place, step in enumerate(steps):
            if step in self._latents and step in plain._latents:
                given = (self._latents[step] - plain._latents[step]).double()
                answer = predictions[0][place] - usual[0][step]
                pairs = ((given, given), (given, answer), (answer, answer))
                found[step] = [float(one @ other / scale) for one, other in pairs]
        return found

    def _predictions(self) -> list[torch.Tensor]:
        """Sketches (steps, width) of the guided prediction; branches apart begin with the prompt's.

        Of the steps that were computed, in order.
        """
        steps = sorted({step for step, _ in self._outputs})
        branches = 1 + max(branch for _, branch in self._outputs)
        outputs = [
            torch.stack([self._outputs[step, branch] for step in steps]).double()
            for branch in range(branches)
        ]
        if branches == 2:
            with_prompt, without = outputs
            return [self._guided(without, with_prompt)]
        return outputs


class TraceRecorder:
    """Sketches residuals; pass it as the `tap` of a session.

    Blocks may see the token grid in two layouts (frames outside, or tokens outside, as spatial and
    temporal blocks do). Which one is seen from the stream: what enters a block is what left the one
    before it, as it was or transposed. Residuals are sketched in the first block's layout, so that
    their sketches add up to that of the whole stack's residual. Streams of a block (video and text)
    are sketched apart, and their inner products added.
    """

    def __init__(self, num_blocks: int, sketcher: Sketcher, guidance_scale: float = 1.0) -> None:
        self._sketcher, self._num_blocks = sketcher, num_blocks
        self.predictions = PredictionRecorder(sketcher, guidance_scale)
        self._sketches: dict[tuple[int, int, int], dict[Layout, torch.Tensor]] = {}
        self._norms: dict[tuple[int, int, int], torch.Tensor] = {}
        self._transposed: dict[int, bool] = {0: False}
        self._before: _Left | None = None
        self._reference = torch.Size()

    def __call__(
        self, step: int, branch: int, block: int, streams: Tensors, outputs: Tensors
    ) -> None:
        """Sketch what a block added to its streams, or the model's prediction."""
        if block == MODEL:
            self.predictions(step, branch, block, streams, outputs)
            return
        if block == 0:
            self._reference = streams[0].shape
        elif block not in self._transposed:
            self._transposed[block] = self._turned(block, streams[0])
        if step == 0 and branch == 0:
            self._before = self._left(outputs[0])
        key = step, branch, block
        self._sketches[key] = {}
        for number, (stream, output) in enumerate(zip(streams, outputs, strict=True)):
            layout = number, output.numel()
            if number == 0 and self._transposed[block]:
                stream, output = (_swap(each, self._reference) for each in (stream, output))
            self._sketches[key][layout] = _to_host(self._sketcher(output, less=stream))
        norms = [torch.linalg.vector_norm(out, dtype=torch.float32) for out in outputs]
        self._norms[key] = _to_host(torch.stack(norms).square().sum())

    def _left(self, output: torch.Tensor) -> "_Left":
        """What to tell the next block's layout by."""
        square = _transposes(output.shape, output.shape)
        layouts = [output, _swap(output, output.shape)] if square else []
        return _Left(output.shape, [self._sketcher(each) for each in layouts])

    def _turned(self, block: int, stream: torch.Tensor) -> bool:
        """Whether this block sees the transposed layout, given that of the block before."""
        assert self._before is not None
        left, before = self._before, self._transposed[block - 1]
        if not _transposes(left.shape, stream.shape):
            return before
        if not left.sketches:
            return not before
        seen = self._sketcher(stream)
        kept, turned = ((seen - each).square().sum() for each in left.sketches)
        return before ^ bool(turned < kept)

    def grams(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What was recorded.

        Returns:
            gram (N, S, S), group_gram (2, S, S) of the whole stack's residual and of the model's
            guided output, output_norm (N, S).
        """
        steps = 1 + max(step for step, _, _ in self._sketches)
        branches = 1 + max(branch for _, branch, _ in self._sketches)
        gram = np.zeros((self._num_blocks, steps, steps))
        stack_gram = np.zeros((steps, steps))
        energy = np.zeros((self._num_blocks, steps))
        for branch in range(branches):
            stack: dict[Layout, torch.Tensor] = defaultdict(
                lambda: torch.zeros((), dtype=torch.float64)
            )
            for block in range(self._num_blocks):
                for layout in self._sketches[0, branch, block]:
                    rows = [self._sketches[step, branch, block][layout] for step in range(steps)]
                    sketches = torch.stack(rows).double()
                    gram[block] += (sketches @ sketches.mT).numpy()
                    stack[layout] = stack[layout] + sketches
                norms = [self._norms[step, branch, block] for step in range(steps)]
                energy[block] += torch.stack(norms).numpy()
            stack_gram += sum((total @ total.mT).numpy() for total in stack.values())
        scale = energy.mean(axis=1)
        output_gram = self.predictions.gram()
        groups = np.stack([stack_gram / scale[-1], output_gram / np.diag(output_gram).mean()])
        return gram / scale[:, None, None], groups, np.sqrt(energy)


def _alike(latents: torch.Tensor, outputs: Tensors) -> bool:
    """Whether a prediction and latents have one form, but for channels behind the prediction."""
    shape, channels = outputs[0].shape, latents.shape[1]
    alike = (shape[0], *shape[2:]) == (latents.shape[0], *latents.shape[2:])
    return len(outputs) == 1 and alike and shape[1] >= channels


class _Left(NamedTuple):
    """What a block left: its shape, and where both layouts have that, sketches in either."""

    shape: torch.Size
    sketches: list[torch.Tensor]


def _transposes(one: torch.Size, other: torch.Size) -> bool:
    """Whether shapes may be (B * n, m, D) and (B * m, n, D)."""
    if len(one) != 3 or len(other) != 3:
        return False
    (first, width, depth), rows = one, other[1]
    batch = max(1, first // rows)
    return first == batch * rows and tuple(other) == (batch * width, rows, depth)


def _swap(tokens: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """(B * n, m, D) seen as (B, m, n, D), the other layout, of `shape` (B * m, n, D).

    A reshape to that would copy.
    """
    batch = max(1, tokens.shape[0] // shape[1])
    return tokens.unflatten(0, (batch, -1)).transpose(1, 2)


def _to_host(tensor: torch.Tensor) -> torch.Tensor:
    """A copy on the host that nothing waits for; it is there when the generation has ended.

    The clock waits for the device then.
    """
    return tensor.to("cpu", non_blocking=True)
