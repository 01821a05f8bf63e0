r"""What each part of the learned policy is worth, as PSNR at equal computed steps.

    python benchmarks/ablations.py --model checkpoints/tiny-latte --traces runs/latte/traces \
        runs/latte/on-policy --prompts data/prompts/test.txt --configs data/configs/demo.json \
        --limit 8 --work runs/ablations/latte --output docs/results/latte/ablations.csv

Trains the policy and the variants that differ in training, generates every video uncached and under
every variant, and writes a table of means, and the same as Markdown beside it. What is finished is
kept under --work: networks, and the rows of each video; the same command goes on there.
"""

import argparse
import itertools
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import pandas as pd  # noqa: E402 - what follows is found from the root of the checkout
from tqdm.auto import tqdm  # noqa: E402

from benchmarks.ablation_blocks import INSIDE  # noqa: E402
from benchmarks.ablation_runs import Bench, Row  # noqa: E402
from benchmarks.ablation_table import page, summarize  # noqa: E402
from benchmarks.ablation_training import foreseen, trainings  # noqa: E402
from benchmarks.ablation_variants import FULL, PLANNED, Variant  # noqa: E402
from foresight.cli import spread  # noqa: E402
from foresight.config import UserError, load_configs, load_prompts  # noqa: E402
from foresight.devices import device_name  # noqa: E402
from foresight.evaluation import Video  # noqa: E402
from foresight.fingerprint import fingerprint  # noqa: E402
from foresight.pipeline import load_pipeline  # noqa: E402
from foresight.policies.learned import LearnedPolicy  # noqa: E402
from foresight.traces import write_atomically  # noqa: E402

SPEEDUPS = (1.5, 2.0, 3.0)
VARIANTS = PLANNED | INSIDE
SEARCHED = "searched"
SEARCHED_MEANING = "steps searched for each video, knowing the uncached one: an upper bound"
FORESEEN = """
Of {} other roll-outs of prompts that the policy was not trained on, predicted and measured error of
the final latents have a Spearman correlation of {:.3f}.
"""
NUM_SEARCHED = 4  # videos
SEARCHED_SPEEDUP = 2.0  # or the nearest that is asked for


def main(arguments: list[str] | None = None) -> None:
    """Run the ablations from the command line; bad input ends in one line and exit code 2."""
    parser = _parser()
    args = parser.parse_args(arguments)
    for flag in ("limit", "evaluations"):
        if getattr(args, flag) < 1:
            parser.error(f"--{flag} {getattr(args, flag)}: must be at least 1")
    if not all(1 < speedup <= 20 for speedup in args.speedups):
        parser.error(f"--speedups {args.speedups}: must lie above 1 and be at most 20")
    try:
        prompts, configs = load_prompts(args.prompts), load_configs(args.configs)
        videos = [Video(p, args.seed, c) for c, p in itertools.product(configs, prompts)]
        pipe = load_pipeline(args.model)
        known = trainings(args.traces, args.more)
        networks = {}
        for name, each in known.items():
            networks[name] = each.run(args.work / "policies" / name.replace(" ", "-"))
            networks[name].check(pipe)
        rows = ablate(
            pipe,
            networks,
            spread(videos, args.limit),
            work=args.work,
            speedups=args.speedups,
            evaluations=args.evaluations,
        )
    except UserError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    meanings = {name: each.meaning for name, each in (known | VARIANTS).items()}
    meanings[SEARCHED] = SEARCHED_MEANING
    summary = summarize(rows, list(meanings), args.speedups)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(args.output, summary.to_csv(index=False).encode())
    text = page(summary, meanings, Path(args.model).name, device_name(pipe))
    if args.more:
        text += FORESEEN.format(*foreseen(networks[FULL], args.traces, args.more))
    write_atomically(args.output.with_suffix(".md"), text.encode())
    print(text)  # noqa: T201


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True)
    parser.add_argument(
        "--traces", type=Path, nargs="+", required=True, help="first the sampled, then on-policy"
    )
    parser.add_argument(
        "--more", type=Path, nargs="*", default=(), help="for the learning curve beyond those"
    )
    parser.add_argument("--prompts", required=True)
    parser.add_argument("--configs", required=True)
    parser.add_argument("--limit", type=int, default=8, help="videos, spread evenly over all")
    parser.add_argument("--seed", type=int, default=1000, help="of the noise")
    parser.add_argument("--speedups", type=float, nargs="+", default=SPEEDUPS)
    parser.add_argument(
        "--evaluations", type=int, default=40, help="generations of a search, per video"
    )
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    return parser


def ablate(
    pipe: Any,
    networks: dict[str, LearnedPolicy],
    videos: Sequence[Video],
    *,
    work: Path,
    speedups: Sequence[float] = SPEEDUPS,
    evaluations: int = 40,
) -> pd.DataFrame:
    """Generate and measure what is missing under `work`.

    Args:
        pipe: A diffusers pipeline.
        networks: The policies that plan as they do, by name; `FULL` among them.
        videos: What is generated by every variant.
        work: Folder of the rows.
        speedups: What the numbers of computed steps stand for.
        evaluations: Of each search.

    Returns:
        One row per variant, video and speed-up.

    Raises:
        UserError: If `work` holds ablations of something else.
    """
    _claim(pipe, work, networks[FULL], evaluations)
    nearest = min(speedups, key=lambda each: abs(each - SEARCHED_SPEEDUP))
    searched = spread(list(videos), NUM_SEARCHED)

    def make(bench: Bench, name: str, speedup: float) -> Row:
        policy = networks.get(name, networks[FULL])
        if name == SEARCHED:
            return bench.searched(name, policy, speedup, evaluations)
        return bench.planned(name, policy, VARIANTS.get(name, Variant("")), speedup)

    parts = []
    planned = list(itertools.product([*networks, *VARIANTS], speedups))
    total = len(videos) * len(planned) + len(searched)
    with tqdm(total=total, desc="ablations", unit="row", smoothing=0.02) as bar:
        for video in videos:
            bar.set_postfix_str(video.prompt.text[:40])
            jobs = [*planned, (SEARCHED, nearest)] if video in searched else planned
            path = work / "parts" / f"{video.key}.csv"
            parts.append(_complete(path, jobs, lambda v=video: Bench(pipe, v), make, bar.update))
    return pd.concat(parts, ignore_index=True)


def _complete(
    path: Path,
    jobs: Sequence[tuple[str, float]],
    open_bench: Callable[[], Bench],
    make: Callable[[Bench, str, float], Row],
    advance: Callable[[], Any],
) -> pd.DataFrame:
    """The rows of one video, in the order of the jobs; kept as they come."""
    rows = pd.read_csv(path).to_dict("records") if path.is_file() else []
    done = {(row["variant"], row["speedup"]): row for row in rows}
    bench: Bench | None = None
    for job in jobs:
        if job not in done:
            bench = bench or open_bench()
            done[job] = make(bench, *job)
            path.parent.mkdir(parents=True, exist_ok=True)
            table = pd.DataFrame(list(done.values()))
            write_atomically(path, table.to_csv(index=False).encode())
        advance()
    return pd.DataFrame([done[job] for job in jobs])


def _claim(pipe: Any, work: Path, policy: LearnedPolicy, evaluations: int) -> None:
    """Note what the rows under `work` are of; refuse a folder with those of something else."""
    setup = {
        "model": fingerprint(pipe),
        "device": device_name(pipe),
        "dtype": str(pipe.transformer.dtype),
        "policy": policy.digest(),
        "evaluations": evaluations,
    }
    path = work / "setup.json"
    if not path.is_file():
        work.mkdir(parents=True, exist_ok=True)
        write_atomically(path, (json.dumps(setup, indent=1) + "\n").encode())
    held = json.loads(path.read_text("utf-8"))
    changed = [name for name in setup if held.get(name) != setup[name]]
    if changed:
        raise UserError(
            f"--work {work} holds ablations with other {', '.join(changed)}; "
            "choose another folder or delete it"
        )


if __name__ == "__main__":
    main()
