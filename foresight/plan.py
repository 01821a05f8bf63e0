"""The plan: for every step and block, compute, reuse or forecast; known before the loop starts."""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

COMPUTE, REUSE, FORECAST = 0, 1, 2
ACTION_NAMES = ("compute", "reuse", "forecast")
HISTORY = 3  # predictions that a step of a plan at the output may read


def skipped_runs(computed: np.ndarray) -> Iterator[tuple[int, int, int]]:
    """The steps computed before the last, last and next, of each run of steps that are not.

    Args:
        computed: bool (S,); step 0 is computed.

    Yields:
        Three steps. The first two are the same where only step 0 was computed; the last is S where
        nothing is computed any more.
    """
    order = [0, *np.flatnonzero(computed).tolist(), len(computed)]
    for previous, latest, following in zip(order, order[1:], order[2:], strict=False):
        if following > latest + 1:
            yield previous, latest, following


def plain_weights(num_steps: int) -> np.ndarray:
    """Weights (S, HISTORY) of steps that return the latest prediction as it is."""
    weights = np.zeros((num_steps, HISTORY), np.float32)
    weights[:, 0] = 1
    return weights


def _readable(weights: np.ndarray, computed: np.ndarray) -> np.ndarray:
    """Whether steps (S,) have what their weights ask for, given how often was computed by then."""
    unread = weights == 0
    return (unread | (computed[:, None] > np.arange(HISTORY))).all(axis=1)


@dataclasses.dataclass(frozen=True)
class Plan:
    """A table of actions, and the weights of what stands in for what is not computed.

    Attributes:
        actions: uint8 (S, N); S steps, N blocks in execution order; values COMPUTE, REUSE,
            FORECAST.
        coefficients: float32 (S, N); beta of `r[a] + beta * (r[a] - r[p])` where the action is
            FORECAST and a, p are the last two computed steps of that block; 0 elsewhere, and in
            plans at the output.
        at_output: The whole model is one unit: where it is skipped no block runs, and what stands
            in is a prediction of the model instead of the blocks' residuals.
        weights: float32 (S, HISTORY), for plans at the output; what a step returns is
            `w[0] * v[a] + w[1] * v[p] + w[2] * v[q]`: a, p, q are the steps computed last (a is
            the step itself where it is computed).

    Raises:
        ValueError: If shapes differ, an action needs a residual that no earlier step computed,
            blocks differ in a plan at the output, or weights ask for what was not computed.
    """

    actions: np.ndarray
    coefficients: np.ndarray
    at_output: bool = False
    weights: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((0, HISTORY)))

    def __post_init__(self) -> None:
        if self.actions.ndim != 2 or self.actions.shape != self.coefficients.shape:
            raise ValueError(
                f"`actions` {self.actions.shape} and `coefficients` {self.coefficients.shape} "
                "must be the same (steps, blocks) table"
            )
        if self.at_output and (self.actions != self.actions[:, :1]).any():
            raise ValueError("blocks cannot differ in a plan at the output")
        if not len(self.weights):
            object.__setattr__(self, "weights", plain_weights(len(self.actions)))
        if self.weights.shape != (len(self.actions), HISTORY):
            raise ValueError(f"`weights` {self.weights.shape} must be (steps, {HISTORY})")
        if self.actions.max(initial=0) > FORECAST:
            raise ValueError(f"`actions` has values above {FORECAST}")
        before = np.cumsum(self.actions == COMPUTE, axis=0) - (self.actions == COMPUTE)
        needs = {REUSE: 1} if self.at_output else {REUSE: 1, FORECAST: 2}
        for action, needed in needs.items():
            short = np.argwhere((self.actions == action) & (before < needed))
            if len(short):
                step, block = short[0]
                raise ValueError(
                    f"plan: step {step}, block {block}: {ACTION_NAMES[action]} needs {needed} "
                    f"computed step(s) before it, and has {before[step, block]}"
                )
        odd = (self.weights != plain_weights(1)).any(axis=1)
        if self.at_output:
            odd = ~_readable(self.weights, np.cumsum(self.actions[:, 0] == COMPUTE))
        wrong = np.flatnonzero(odd)
        if len(wrong):
            raise ValueError(f"plan: step {wrong[0]} cannot be weighted so")

    @classmethod
    def from_actions(cls, actions: np.ndarray) -> "Plan":
        """A plan without forecasts."""
        return cls(actions.astype(np.uint8), np.zeros(actions.shape, np.float32))

    @classmethod
    def whole_stack(
        cls,
        computed: np.ndarray,
        coefficients: np.ndarray,
        num_blocks: int,
        *,
        at_output: bool = False,
    ) -> "Plan":
        """All blocks share each decision.

        Args:
            computed: bool (S,).
            coefficients: (S,) betas; where not 0, a step that is not computed is forecast.
            num_blocks: N.
            at_output: See `Plan`.
        """
        betas = np.where(computed, 0, coefficients).astype(np.float32)
        if at_output:
            weights = plain_weights(len(computed))
            weights[:, 0] += betas
            weights[:, 1] -= betas
            return cls.of_output(computed, weights, num_blocks)
        skipped = np.where(betas != 0, FORECAST, REUSE)
        actions = np.where(computed, COMPUTE, skipped).astype(np.uint8)
        return cls(
            np.repeat(actions[:, None], num_blocks, axis=1),
            np.repeat(betas[:, None], num_blocks, axis=1),
        )

    @classmethod
    def of_output(cls, computed: np.ndarray, weights: np.ndarray, num_blocks: int) -> "Plan":
        """A plan at the output.

        Args:
            computed: bool (S,).
            weights: (S, HISTORY), see `Plan`.
            num_blocks: N.
        """
        weights = weights.astype(np.float32)
        plain = (weights == plain_weights(1)).all(axis=1)
        actions = np.where(computed, COMPUTE, np.where(plain, REUSE, FORECAST)).astype(np.uint8)
        shape = len(computed), num_blocks
        table = np.broadcast_to(actions[:, None], shape).copy()
        return cls(table, np.zeros(shape, np.float32), at_output=True, weights=weights)

    def restarted(self, step: int) -> "Plan":
        """What is left of the plan from a step on, where nothing computed before can be used.

        That step is computed, and what needs more than was computed since becomes plain reuse.
        """
        actions, betas = self.actions[step:].copy(), self.coefficients[step:].copy()
        weights = self.weights[step:].copy()
        if actions[0, 0] != COMPUTE:
            weights[0] = plain_weights(1)
        actions[0], betas[0] = COMPUTE, 0
        computed = np.cumsum(actions == COMPUTE, axis=0)
        if self.at_output:
            lost = ~_readable(weights, computed[:, 0])
            weights[lost] = plain_weights(1)
            actions[lost] = np.where(actions[lost] == COMPUTE, COMPUTE, REUSE)
        else:
            short = (actions == FORECAST) & (computed < 2)
            actions[short], betas[short] = REUSE, 0
        return dataclasses.replace(self, actions=actions, coefficients=betas, weights=weights)

    @property
    def shape(self) -> tuple[int, int]:
        """(steps, blocks)."""
        return self.actions.shape[0], self.actions.shape[1]

    def compute_fraction(self, block_seconds: np.ndarray | None = None) -> float:
        """Share of the block cost that is executed; by default all blocks cost the same."""
        cost = np.ones(self.shape[1]) if block_seconds is None else np.asarray(block_seconds)
        return float(((self.actions == COMPUTE) * cost).sum() / (cost.sum() * self.shape[0]))


@dataclasses.dataclass(frozen=True)
class Operation:
    """What one block does at one step, with everything decided beforehand.

    `slot` is the tensor that a group of blocks shares. A computed block with an operation stores
    its residual there: the `first` of its group starts the tensor (after moving it to `previous`
    where a later forecast needs both), the others add to it. A skipped block passes its input on;
    the `last` of its group adds the tensor, and lets go of what no later step reads.
    """

    action: int
    slot: int
    first: bool
    last: bool
    shift: bool = False
    coefficient: float = 0.0
    drops_latest: bool = False
    drops_previous: bool = False


Row = list[Operation | None]


def compile_plan(plan: Plan, kinds: Sequence[str]) -> list[Row]:
    """Turn a plan into operations; None is a computed block whose residual no later step needs.

    Liveness: a residual is stored only if a later step reads it. Fusion: blocks of one kind (one
    token layout) that always act alike, with nothing computed in between when they are skipped,
    share one slot.

    Args:
        plan: (S, N).
        kinds: N names; only blocks of equal kind may share a tensor.
    """
    slots = _share_slots(plan, kinds)
    steps, blocks = plan.shape
    rows: list[Row] = [[None] * blocks for _ in range(steps)]
    for slot in set(slots):
        members = [block for block in range(blocks) if slots[block] == slot]
        column, betas = plan.actions[:, members[0]], plan.coefficients[:, members[0]]
        for step, operation in _column_operations(slot, column, betas):
            for block in members:
                rows[step][block] = dataclasses.replace(
                    operation, first=block == members[0], last=block == members[-1]
                )
    return rows


def _column_operations(
    slot: int, column: np.ndarray, betas: np.ndarray
) -> Iterator[tuple[int, Operation]]:
    """The operations (step, operation) of a group, from its actions and coefficients (S,)."""
    computed = [int(step) for step in np.flatnonzero(column == COMPUTE)]
    ends = [*computed[1:], len(column)]
    forecasts = [
        bool((column[a + 1 : b] == FORECAST).any()) for a, b in zip(computed, ends, strict=True)
    ]
    for number, (start, end) in enumerate(zip(computed, ends, strict=True)):
        read_later = number + 1 < len(computed) and forecasts[number + 1]
        if start + 1 < end or read_later:
            yield start, Operation(COMPUTE, slot, True, True, shift=forecasts[number])
        last_forecast = start + int(np.flatnonzero(column[start:end] == FORECAST).max(initial=0))
        for step in range(start + 1, end):
            yield (
                step,
                Operation(
                    int(column[step]),
                    slot,
                    first=True,
                    last=True,
                    coefficient=float(betas[step]),
                    drops_latest=step == end - 1 and not read_later,
                    drops_previous=step == last_forecast,
                ),
            )


def _share_slots(plan: Plan, kinds: Sequence[str]) -> list[int]:
    """Slot of each block: the first block of its group."""
    actions, betas = plan.actions, plan.coefficients
    slots: list[int] = []
    for block in range(plan.shape[1]):
        slots.append(block)
        for slot in sorted(set(slots[:-1]), reverse=True):
            alike = (
                kinds[slot] == kinds[block]
                and np.array_equal(actions[:, slot], actions[:, block])
                and np.array_equal(betas[:, slot], betas[:, block])
            )
            skipped = actions[:, slot] != COMPUTE
            if alike and (actions[skipped, slot : block + 1] != COMPUTE).all():
                slots[block] = slot
                break
    return slots
