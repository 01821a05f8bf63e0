"""From a predicted log change to the probability that reuse is safe."""

import numpy as np
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LogisticRegression

from policy_training.baselines import GroupMean, probability_of_safe
from policy_training.dataset import Queries
from policy_training.labels import safe_to_reuse


class SafeProbability:
    """Platt scaling of the margin between a predicted log change and the residual's usual norm.

    "Safe" compares the change with the residual's own norm, which is not known before it is
    computed: its mean per (entity, step) over the training queries stands in for it.
    """

    def fit(self, queries: Queries, log_reuse: np.ndarray, tolerance: float) -> "SafeProbability":
        """Fit on training queries and the network's predictions for them, shape (Q,)."""
        self.own = GroupMean().fit(_keys(queries), queries.moments.own.log().numpy())
        safe = safe_to_reuse(queries.moments, tolerance).numpy()
        one_class = safe.all() or not safe.any()
        model = DummyClassifier() if one_class else LogisticRegression()
        self.model = model.fit(self._margin(queries, log_reuse), safe)
        return self

    def predict(self, queries: Queries, log_reuse: np.ndarray) -> np.ndarray:
        """Probability of "safe" for each query, shape (Q,)."""
        return probability_of_safe(self.model, self._margin(queries, log_reuse))

    def _margin(self, queries: Queries, log_reuse: np.ndarray) -> np.ndarray:
        return (log_reuse - self.own.predict(_keys(queries)))[:, None]


def _keys(queries: Queries) -> tuple[np.ndarray, np.ndarray]:
    """(entity, step s), and entity alone: what `GroupMean` averages the own norm by."""
    entity, target = queries.entity.numpy(), queries.steps[:, 0].numpy()
    return np.stack([entity, target], axis=1), entity[:, None]
