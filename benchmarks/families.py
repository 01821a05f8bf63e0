"""Runs the checks of `tests/families` on every family and writes `docs/families.md`.

python benchmarks/families.py
"""

import sys
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import markdown  # noqa: E402 - found from the root of the checkout
from tests.families import FAMILIES, Family  # noqa: E402
from tests.families.checks import CHECKS  # noqa: E402

OUTPUT = ROOT / "docs" / "families.md"
TITLES = {
    "is_as_described": "facts hold",
    "finds_the_blocks": "blocks found, in order",
    "computing_all_is_bit_identical": "bit-identical",
    "executes_the_plan": "executed = plan",
    "matches_a_loop_by_hand": "reuse and forecast match",
    "keeps_branches_apart": "branches apart",
    "forgets_an_interrupted_generation": "interrupt-safe",
    "disable_restores_the_pipeline": "disable restores",
    "profiles_one_generation": "profiling",
}


def main() -> int:
    """Write the page; the exit status is 1 if any check failed."""
    warnings.simplefilter("ignore")
    reasons: list[str] = []
    results = [_checked(family, reasons) for family in FAMILIES.values()]
    lines = [
        "# Model families",
        "",
        _INTRODUCTION.format(diffusers=version("diffusers"), torch=version("torch")),
        "",
        *markdown.table(["family", *(TITLES[name] for name in CHECKS)], results),
        "",
        *([*reasons, ""] if reasons else []),
        "## What the families are like",
        "",
        _FACTS,
        "",
        *markdown.table(
            ["family", "blocks", "a block returns", "guidance", "`cache_context`", "solver calls"],
            map(_facts, FAMILIES.values()),
        ),
        "",
        "## What the columns mean",
        "",
        *(f"- **{TITLES[name]}**: {_summary(check)}" for name, check in CHECKS.items()),
        "",
        _ENDING,
    ]
    OUTPUT.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
    name = OUTPUT.relative_to(ROOT)
    print(f"{name}: {len(results)} families, {len(reasons)} failed checks")  # noqa: T201
    return int(bool(reasons))


def _checked(family: Family, reasons: list[str]) -> list[str]:
    row = [family.name]
    for name, check in CHECKS.items():
        try:
            check(family)
            row.append("yes")
        except Exception as error:
            row.append("**no**")
            first = next(iter(str(error).splitlines()), "")
            reasons.append(f"- {family.name}, {TITLES[name]}: {type(error).__name__}: {first}")
    return row


def _facts(family: Family) -> list[str]:
    returned = ", ".join(f"`{name}`" for name in family.returns)
    texts = f" (and {len(family.text_blocks)} for text)" if family.text_blocks else ""
    experts = f" in each of {len(family.transformers)}" if len(family.transformers) > 1 else ""
    passes = "one batch" if family.branches == "fused" else f"{family.calls} passes"
    return [
        family.name,
        f"{len(family.blocks)}{experts}{texts}",
        returned if family.streams == 1 else f"({returned})",
        passes,
        "yes" if family.cache_context else "no",
        str(family.scheduler_steps),
    ]


def _summary(check: Callable) -> str:
    return " ".join(str(check.__doc__).split())


_INTRODUCTION = """\
Every family below is run through its own diffusers pipeline class, built from a configuration with
random weights, a hidden width of 16 to 32, two to four blocks a stack and six steps, in float32 on
a CPU. That shows that the runtime does the right thing with how the family is put together; it says
nothing about speed or quality on trained weights. Made by `python benchmarks/families.py` with
diffusers {diffusers} and torch {torch}; `tests/test_families.py` runs the same checks."""

_FACTS = """\
Established by reading diffusers and confirmed by running it ("facts hold"). Blocks are counted in
the tiny model; where guidance takes several passes, each has its own cache."""

_ENDING = """\
The reference for reuse and forecasts is `tests/families/by_hand.py`: it replaces every block's
forward by a few lines that keep all residuals of every stream, branch and transformer by
themselves, and shares no code with the runtime. Latents agree to within 1e-5 of their standard
deviation; the plans move them by at least a hundred times as much. Three plans are run: blocks that
each go their own way, the whole stack together, and the model's output.

Particulars:

- **Wan 2.2** has two transformers in one loop. Plans are indexed by the step of the loop; the
  second transformer computes its first step whatever the plan says, since nothing is stored of it.
- **HunyuanVideo 1.5** reads values of its inputs while it runs, so that its blocks cannot be
  observed without data: in its first generation the transformer runs once more.
- **LTX-2** evaluates up to three passes a step (guidance, spatio-temporal guidance, modality
  guidance) on batches of different size, and its blocks carry video and sound.
- **Cosmos 1** calls its solver twice a step. Its guardrail is a separate package; the tests put an
  object in its place that lets everything pass.
- **ConsisID** adds a layer that looks at faces between some of its blocks. A stored residual is not
  shared across it."""


if __name__ == "__main__":
    sys.exit(main())
