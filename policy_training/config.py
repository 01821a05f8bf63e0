"""The settings of `train-policy`; imports no torch, so that `--help` is quick."""

from dataclasses import dataclass
from pathlib import Path

from foresight.config import UserError


@dataclass
class TrainConfig:
    """Train a reuse policy on the trace sets that `foresight profile` wrote."""

    dirs: list[Path]
    """Trace sets to learn from, all of one model."""
    output: Path
    """Folder of the new policy; training state and TensorBoard logs go to its `training` folder."""
    seed: int = 0
    """Seed of the split by prompt, of the network and of the sampled queries."""
    max_epochs: int = 24
    """Epochs of 25 batches each, the same for the policy and for its ablations."""
    batch_size: int = 2048
    """Queries (generation, block, step, latest and previous computed step) in a batch."""
    lr: float = 1e-2
    """Peak learning rate of AdamW; it follows a one-cycle schedule."""
    tolerance: float = 0.2
    """Reuse counts as safe when the residual has changed by at most this share of its own norm."""
    validation_fraction: float = 0.25
    """Share of the prompts held out from training, for the choice of checkpoint and the card."""
    prompt: bool = True
    """Condition on the prompt embedding."""
    ablate: bool = True
    """For the model card, also train the network without the prompt and with shuffled prompts, and
    the baselines."""

    def __post_init__(self) -> None:
        """Refuse values out of range, naming the flag."""
        for name in ("max_epochs", "batch_size", "lr", "tolerance"):
            if getattr(self, name) <= 0:
                raise UserError(f"--{name} must be positive, got {getattr(self, name)}")
        if not 0 < self.validation_fraction < 1:
            raise UserError(
                f"--validation_fraction must lie between 0 and 1, got {self.validation_fraction}"
            )
        if not self.dirs:
            raise UserError("DIR is missing: name at least one trace set")
