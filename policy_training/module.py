"""What the network is trained on: forecasts and risks; and what it says of roll-outs."""

from typing import Any

import lightning
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from scipy.stats import spearmanr
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, huber_loss

from foresight.policies.network import ReuseModel
from foresight.policies.reaction import ReactionModel
from policy_training import figures
from policy_training.baselines import Predictions, score
from policy_training.config import TrainConfig
from policy_training.damage import damages
from policy_training.dataset import BATCHES_PER_EPOCH, Queries, TraceData, concatenate
from policy_training.labels import forecast_error, safe_to_reuse
from policy_training.paths import profiled_schedules

FIGURES_EVERY = 8


class ReuseTraining(lightning.LightningModule):
    """Trains a `ReuseModel`.

    Args:
        num_blocks: N.
        prompt_width: D.
        num_levels: M, noise levels of the network's kernel.
        profiled_steps: Of each schedule that was profiled.
        lr: Peak learning rate.
        max_epochs: Epochs that the learning-rate schedule spans.
        tolerance: Of the label "safe to reuse".

    Attributes:
        seconds: What its training took.
    """

    def __init__(
        self,
        num_blocks: int,
        prompt_width: int,
        num_levels: int,
        profiled_steps: list[int],
        lr: float,
        max_epochs: int,
        tolerance: float,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.model = ReuseModel(num_blocks, prompt_width, num_levels, profiled_steps, tolerance)
        self.seconds = 0.0
        self.held_out: list[tuple[Queries, dict[str, Tensor]]] = []

    @classmethod
    def for_data(
        cls, config: TrainConfig, data: TraceData, reaction: ReactionModel
    ) -> "ReuseTraining":
        """A fresh network; all but what is learned by gradients is fitted to the training side.

        Args:
            config: Of the run.
            data: What it is trained on.
            reaction: Fitted to the same roll-outs.
        """
        buckets = data.train_buckets
        finest = max(buckets, key=lambda bucket: bucket.sigmas.shape[1])
        schedules = profiled_schedules(buckets)
        module = cls(
            num_blocks=buckets[0].gram.shape[1] - 1,
            prompt_width=buckets[0].embedding.shape[1],
            num_levels=finest.sigmas.shape[1],
            profiled_steps=[len(schedule.sigmas) for schedule in schedules],
            lr=config.lr,
            max_epochs=config.max_epochs,
            tolerance=config.tolerance,
        )
        module.model.fit_inputs(
            torch.cat([bucket.embedding for bucket in buckets]),
            torch.cat([bucket.features for bucket in buckets]),
        )
        module.model.fit_kernel(finest.sigmas[0], finest.gram.mean(dim=0))
        for path, schedule in zip(module.model.paths, schedules, strict=True):
            path.fit(*schedule)
        module.model.reaction.load_state_dict(reaction.state_dict())
        return module

    def forward(self, queries: Queries) -> dict[str, Tensor]:
        """Coefficient, log risk of reuse and of the forecast, log odds of "safe"; each (Q,)."""
        context = self.model.context(queries.embedding, queries.features)
        return self.model(queries.entity, queries.levels, context)

    def losses(self, queries: Queries, out: dict[str, Tensor]) -> dict[str, Tensor]:
        """Scalar losses of the dense part.

        `forecast` is the mean log of what the predicted coefficient leaves, relative to reuse;
        `reuse` and `left` are Huber losses of the predicted log risks; `safe` is a cross-entropy.
        """
        log_change = queries.moments.change.log()
        log_left = forecast_error(queries.moments, out["coefficient"]).log()
        safe = safe_to_reuse(queries.moments, self.hparams["tolerance"])
        return {
            "forecast": (log_left - log_change).mean(),
            "reuse": huber_loss(out["log_reuse"], log_change),
            "left": huber_loss(out["log_forecast"], log_left.detach()),
            "safe": binary_cross_entropy_with_logits(out["safe"], safe.float()),
        }

    def training_step(self, queries: Queries, _: int) -> Tensor:
        """Loss of one batch of queries."""
        losses = self.losses(queries, self(queries))
        total = torch.stack(list(losses.values())).sum()
        self.log_dict({f"train/{name}": value.detach() for name, value in losses.items()})
        self.log("train/loss", total.detach(), prog_bar=True)
        return total

    def validation_step(self, queries: Queries, _: int) -> None:
        """Collect held-out predictions."""
        self.held_out.append((queries, self(queries)))

    def on_validation_epoch_end(self) -> None:
        """Log the held-out loss and metrics, and now and then the figures."""
        queries = concatenate([queries for queries, _ in self.held_out])
        names = self.held_out[0][1]
        out = {name: torch.cat([out[name] for _, out in self.held_out]) for name in names}
        self.held_out.clear()
        losses = self.losses(queries, out)
        self.log_dict({f"val/{name}": value for name, value in losses.items()})
        self.log("val/loss", torch.stack(list(losses.values())).sum(), prog_bar=True)
        if (self.current_epoch + 1) % FIGURES_EVERY == 0:
            self._log_figures(queries, out)

    def _log_figures(self, queries: Queries, out: dict[str, Tensor]) -> None:
        tolerance = self.hparams["tolerance"]
        said = predictions(out)
        row = score("network", queries, said, tolerance)
        self.log_dict(
            {
                "val/average_precision": row.average_precision,
                "val/brier": row.brier,
                "val/r2_log_change": row.r2,
                "val/forecast_db": row.forecast_db,
            }
        )
        safe = safe_to_reuse(queries.moments, tolerance).numpy()
        drawn = {}
        if safe.any() and not safe.all():
            drawn["calibration"] = figures.calibration(safe, said.probability)
            drawn["precision_recall"] = figures.precision_recall(safe, said.probability)
        measured, predicted = damages(self.model, self._data.held_out_rollouts)
        if len(measured) > 2:
            self.log("val/damage_spearman", float(spearmanr(measured, predicted).statistic))
            drawn["damage"] = figures.damage(measured, predicted)
        assert isinstance(self.logger, TensorBoardLogger)
        for name, figure in drawn.items():
            self.logger.experiment.add_figure(f"held_out/{name}", figure, self.current_epoch)

    @property
    def _data(self) -> TraceData:
        return self.trainer.datamodule

    def configure_optimizers(self) -> dict[str, Any]:
        """AdamW with one cycle of the learning rate."""
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.hparams["lr"], weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            max_lr=self.hparams["lr"],
            total_steps=self.hparams["max_epochs"] * BATCHES_PER_EPOCH,
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }


def predict(module: ReuseTraining, queries: Queries) -> dict[str, Tensor]:
    """Coefficient and log risks of each query, without gradients."""
    with torch.no_grad():
        return module(queries)


def predictions(out: dict[str, Tensor]) -> Predictions:
    """The network's answers, as baselines give theirs."""
    return Predictions(
        probability=out["safe"].sigmoid().numpy(),
        log_change=out["log_reuse"].numpy(),
        coefficient=out["coefficient"].numpy(),
    )
