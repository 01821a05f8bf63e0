"""Simple predictors on the same held-out queries, for one table with the learned network."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.base import ClassifierMixin
from sklearn.compose import make_column_transformer
from sklearn.decomposition import PCA
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import average_precision_score, r2_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from policy_training.dataset import Queries
from policy_training.labels import forecast_error, safe_to_reuse

PROMPT_COMPONENTS = 8


@dataclass(frozen=True)
class Predictions:
    """What a method says about Q queries."""

    probability: np.ndarray
    """(Q,) that reuse is safe."""
    log_change: np.ndarray
    """(Q,) log squared change relative to the output stream."""
    coefficient: np.ndarray | None = None
    """(Q,) forecast coefficient, of methods that have one."""


@dataclass(frozen=True)
class Score:
    """One row of the held-out table."""

    method: str
    average_precision: float
    """Of "safe to reuse"; NaN where no held-out query is safe."""
    brier: float
    """Mean squared error of the probability of "safe"; lower is better."""
    r2: float
    """Explained variance of the log change."""
    forecast_db: float
    """Mean drop of the squared error, in dB, from reuse to forecast; NaN without a forecast."""


def score(method: str, queries: Queries, said: Predictions, tolerance: float) -> Score:
    """Compare predictions with what the traces say."""
    safe = safe_to_reuse(queries.moments, tolerance).numpy()
    precision, drop = float("nan"), float("nan")
    if safe.any():
        precision = float(average_precision_score(safe, said.probability))
    if said.coefficient is not None:
        left = forecast_error(queries.moments, torch.from_numpy(said.coefficient).float())
        drop = float(10 * (queries.moments.change / left).log10().mean())
    return Score(
        method=method,
        average_precision=precision,
        brier=float(np.mean((safe - said.probability) ** 2)),
        r2=float(r2_score(queries.moments.change.log().numpy(), said.log_change)),
        forecast_db=drop,
    )


class GroupMean:
    """Mean of the training values under the same key; a coarser key where that was never seen."""

    def fit(self, keys: Sequence[np.ndarray], values: np.ndarray) -> "GroupMean":
        """Average `values` (Q,) by each of `keys`, integers (Q, K), finest first."""
        self.overall = float(np.mean(values))
        self.means: list[dict[tuple[int, ...], float]] = []
        for key in keys:
            groups, index = np.unique(key, axis=0, return_inverse=True)
            means = np.bincount(index.ravel(), values) / np.bincount(index.ravel())
            self.means.append(dict(zip(map(tuple, groups.tolist()), means.tolist(), strict=True)))
        return self

    def predict(self, keys: Sequence[np.ndarray]) -> np.ndarray:
        """Mean for each query, (Q,)."""
        values = np.full(len(keys[0]), self.overall)
        for key, means in reversed(list(zip(keys, self.means, strict=True))):
            for row, name in enumerate(map(tuple, key.tolist())):
                values[row] = means.get(name, values[row])
        return values


def _mean_per_step(train: Queries, held_out: Queries, tolerance: float) -> Predictions:
    """Means per (block, step, lag); least-squares forecast per (block, step, lag, gap)."""

    def keys(queries: Queries) -> tuple[np.ndarray, np.ndarray]:
        s, a, p = queries.steps.numpy().T
        return (
            np.stack([queries.entity.numpy(), s, a, p], axis=1),
            np.stack([queries.entity.numpy(), s - a, a - p], axis=1),
        )

    def mean(values: torch.Tensor, *, by_previous: bool = False) -> np.ndarray:
        columns = slice(None) if by_previous else slice(-1)
        fitted = GroupMean().fit([key[:, columns] for key in keys(train)], values.double().numpy())
        return fitted.predict([key[:, columns] for key in keys(held_out)])

    answers = train.moments
    cross = mean(answers.cross / answers.own, by_previous=True)
    motion = mean(answers.motion / answers.own, by_previous=True)
    return Predictions(
        probability=mean(safe_to_reuse(answers, tolerance)),
        log_change=mean(answers.change.log()),
        coefficient=cross / np.maximum(motion, 1e-12),
    )


def _features(train: Queries, held_out: Queries) -> tuple[np.ndarray, np.ndarray]:
    """Both sides as (Q, F): entity, lag, steps, noise levels, configuration, prompt components.

    The prompt components are fitted on the training side.
    """
    prompts = np.unique(train.embedding.numpy(), axis=0)
    # Of P prompts less their mean there are P - 1; one more would be rounding.
    count = min(PROMPT_COMPONENTS, len(prompts) - 1, prompts.shape[1])
    components = PCA(count).fit(prompts)

    def table(queries: Queries) -> np.ndarray:
        steps = queries.steps.numpy()
        columns = [
            queries.entity.numpy()[:, None],
            steps[:, :1] - steps[:, 1:2],
            steps,
            queries.levels.numpy(),
            queries.features.numpy(),
            components.transform(queries.embedding.numpy()),
        ]
        return np.concatenate(columns, axis=1)

    return table(train), table(held_out)


def fit_baselines(train: Queries, held_out: Queries, tolerance: float, seed: int) -> list[Score]:
    """Fit the baselines on `train` and score them on `held_out`."""
    features, held_out_features = _features(train, held_out)
    safe = safe_to_reuse(train.moments, tolerance).numpy()
    log_change = train.moments.change.log().numpy()
    encode = make_column_transformer(
        (OneHotEncoder(handle_unknown="ignore"), [0]), remainder=StandardScaler()
    )
    trees = {"categorical_features": [0], "early_stopping": False, "random_state": seed}
    pairs = {
        "linear models": (
            make_pipeline(encode, LogisticRegression(max_iter=300)),
            make_pipeline(encode, Ridge()),
        ),
        "gradient boosting": (
            HistGradientBoostingClassifier(**trees),
            HistGradientBoostingRegressor(**trees),
        ),
    }
    said = {"mean per block, step and lag": _mean_per_step(train, held_out, tolerance)}
    for name, (classifier, regressor) in pairs.items():
        if safe.all() or not safe.any():
            classifier = DummyClassifier()
        classifier.fit(features, safe)
        said[name] = Predictions(
            probability=probability_of_safe(classifier, held_out_features),
            log_change=regressor.fit(features, log_change).predict(held_out_features),
        )
    return [score(name, held_out, what, tolerance) for name, what in said.items()]


def probability_of_safe(classifier: ClassifierMixin, features: np.ndarray) -> np.ndarray:
    """Probability of the class True, (Q,); 0 where the classifier never saw it."""
    column = np.flatnonzero(classifier.classes_)
    odds = classifier.predict_proba(features)
    return odds[:, column[0]] if len(column) else np.zeros(len(odds))
