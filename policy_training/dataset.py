"""Queries about reuse, sampled from generations.

A query asks of one generation and one entity (the model's output, or a block): at step s, with the
residuals of steps a and p < a at hand, what would reusing or forecasting cost? Its answer is a few
look-ups in the entity's Gram matrix, so batches are sampled afresh instead of being stored.
"""

from collections.abc import Sequence
from typing import NamedTuple

import lightning
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from policy_training.config import TrainConfig
from policy_training.generations import Bucket, ProfiledGeneration, make_buckets
from policy_training.labels import Moments, moments
from policy_training.rollouts import gather_rollouts

BATCHES_PER_EPOCH = 25
EVALUATION_BATCH = 4096
EVALUATION_SEED = 1_000_000  # far from the seeds of the epochs
# Plans are made at the output, so it gets this share of the queries.
OUTPUT_SHARE = 0.25


class Queries(NamedTuple):
    """A batch of Q queries."""

    entity: Tensor
    """(Q,) 0 for the model's output, 1 + b for block b."""
    steps: Tensor
    """(Q, 3) step indices s, a, p; p = a where nothing was computed before a."""
    levels: Tensor
    """(Q, 3) noise level at those steps."""
    embedding: Tensor
    """(Q, D)"""
    features: Tensor
    """(Q, C)"""
    moments: Moments
    """What the trace answers, each (Q,)."""


def _step_triples(num_steps: int) -> tuple[Tensor, Tensor]:
    """All (s, a, p) with s > a > p, and (s, 0, 0); and their weights, more for short lags."""
    steps = torch.arange(num_steps)
    triples = torch.cartesian_prod(steps, steps, steps)
    s, a, p = triples.unbind(1)
    triples = triples[(s > a) & ((a > p) | (a == 0) & (p == 0))]
    s, a, p = triples.unbind(1)
    return triples, 1.0 / ((s - a) * (a - p).clamp(min=1))


class QueryBatches(Dataset[Queries]):
    """Batches of sampled queries; batch i is the same for the same seed."""

    def __init__(
        self, buckets: list[Bucket], *, batch_size: int, num_batches: int, seed: int
    ) -> None:
        """Prepare the step triples of each bucket."""
        self.buckets = buckets
        self.batch_size = batch_size
        self.num_batches = num_batches
        self.seed = seed
        self.triples = [_step_triples(bucket.gram.shape[-1]) for bucket in buckets]

    def __len__(self) -> int:
        """Number of batches."""
        return self.num_batches

    def __getitem__(self, index: int) -> Queries:
        """Sample batch `index`."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + index)
        weights = torch.tensor([float(len(bucket.gram)) for bucket in self.buckets])
        drawn = torch.multinomial(weights, self.batch_size, replacement=True, generator=generator)
        counts = drawn.bincount(minlength=len(self.buckets)).tolist()
        return concatenate(
            [
                _sample(bucket, triples, count, generator)
                for bucket, triples, count in zip(self.buckets, self.triples, counts, strict=True)
            ]
        )

    def joined(self) -> Queries:
        """All batches as one."""
        return concatenate([self[index] for index in range(len(self))])


def _sample(
    bucket: Bucket, triples: tuple[Tensor, Tensor], count: int, generator: torch.Generator
) -> Queries:
    """Draw `count` queries; `triples` as `_step_triples` returns them."""
    num_generations, num_entities = bucket.gram.shape[:2]
    row = torch.randint(num_generations, (count,), generator=generator)
    block = torch.randint(1, num_entities, (count,), generator=generator)
    entity = torch.where(torch.rand(count, generator=generator) < OUTPUT_SHARE, 0, block)
    table, weights = triples
    picks = torch.multinomial(weights, max(count, 1), replacement=True, generator=generator)
    steps = table[picks[:count]]
    return Queries(
        entity=entity,
        steps=steps,
        levels=bucket.sigmas[row[:, None], steps],
        embedding=bucket.embedding[row],
        features=bucket.features[row],
        moments=moments(bucket.gram.flatten(0, 1), row * num_entities + entity, steps),
    )


def concatenate(batches: Sequence[Queries]) -> Queries:
    """Join batches into one."""
    return Queries(
        *(torch.cat(parts) for parts in zip(*(b[:-1] for b in batches), strict=True)),
        moments=Moments(*map(torch.cat, zip(*(b.moments for b in batches), strict=True))),
    )


class TraceData(lightning.LightningDataModule):
    """Batches of queries for training, and a fixed sample of queries on held-out prompts."""

    def __init__(
        self,
        train: list[ProfiledGeneration],
        held_out: list[ProfiledGeneration],
        config: TrainConfig,
        use: str = "prompt",
    ) -> None:
        """Keep both sides of the split as buckets; `use` is one of `PROMPT_USES`."""
        super().__init__()
        self.config = config
        self.train_buckets = make_buckets(train, use, config.seed)
        self.held_out_buckets = make_buckets(held_out, use, config.seed)
        self.train_rollouts = gather_rollouts(self.train_buckets)
        self.held_out_rollouts = gather_rollouts(self.held_out_buckets)

    def train_dataloader(self) -> DataLoader[Queries]:
        """Fresh queries in each epoch (the trainer reloads this loader every epoch)."""
        assert self.trainer is not None
        epoch = self.trainer.current_epoch
        batches = QueryBatches(
            self.train_buckets,
            batch_size=self.config.batch_size,
            num_batches=BATCHES_PER_EPOCH,
            seed=self.config.seed + 1 + epoch,
        )
        return DataLoader(batches, batch_size=None)

    def val_dataloader(self) -> DataLoader[Queries]:
        """The same held-out queries in every epoch."""
        return DataLoader(self._evaluation(self.held_out_buckets, 2), batch_size=None)

    def training_sample(self, num_batches: int = 2) -> Queries:
        """A fixed sample of training queries: what baselines are fitted on."""
        return self._evaluation(self.train_buckets, num_batches).joined()

    def held_out_sample(self, num_batches: int = 4) -> Queries:
        """A fixed sample of held-out queries: what the card's figures are measured on."""
        return self._evaluation(self.held_out_buckets, num_batches).joined()

    def _evaluation(self, buckets: list[Bucket], num_batches: int) -> QueryBatches:
        return QueryBatches(
            buckets,
            batch_size=EVALUATION_BATCH,
            num_batches=num_batches,
            seed=self.config.seed + EVALUATION_SEED,
        )
