r"""What each part of the learned policy is worth, as PSNR at equal computed steps.

    python benchmarks/ablations.py --model checkpoints/tiny-latte --traces runs/latte/traces \
        runs/latte/on-policy --prompts data/prompts/test.txt --configs data/configs/demo.json \
        --limit 8 --work runs/ablations/latte --output docs/results/latte/ablations.csv

Trains the policy and the variants that differ in training, generates every video uncached and under
every variant, and writes a table of means, and the same as Markdown beside it. What is finished is
kept under --work: networks, and the rows of each variant and video; the same command goes on there.
"""

import argparse
import itertools
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import pandas as pd  # noqa: E402 - what follows is found from the root of the checkout
from tqdm.auto import tqdm  # noqa: E402

from benchmarks.ablation_foresight import ForesightRun  # noqa: E402
from benchmarks.ablation_policies import ExactCount  # noqa: E402
from benchmarks.ablation_runs import Bench, PlannedRun, Run  # noqa: E402
from benchmarks.ablation_search import SearchRun  # noqa: E402
from benchmarks.ablation_table import FULL, page, summarize  # noqa: E402
from benchmarks.ablation_training import Training, trainings  # noqa: E402
from benchmarks.ablation_variants import PLANNED  # noqa: E402
from foresight.config import UserError, load_configs, load_prompts  # noqa: E402
from foresight.curves import SPEEDUPS  # noqa: E402
from foresight.devices import device_name  # noqa: E402
from foresight.evaluation import Video  # noqa: E402
from foresight.fingerprint import fingerprint  # noqa: E402
from foresight.pipeline import generate, load_pipeline  # noqa: E402
from foresight.policies.learned import LearnedPolicy  # noqa: E402
from foresight.traces import write_atomically  # noqa: E402
from policy_training.generations import ProfiledGeneration, load_generations  # noqa: E402

NUM_SEARCHED = 4
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
        rows = ablate(
            pipe,
            trainings(args.traces, args.work),
            load_generations(args.traces),
            spread(videos, args.limit),
            work=args.work,
            speedups=args.speedups,
            variants=args.variants,
            num_evaluations=args.evaluations,
        )
    except UserError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    summary = summarize(rows, args.speedups)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(args.output, summary.to_csv(index=False).encode())
    text = page(summary, Path(args.model).name, device_name(pipe))
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
    parser.add_argument("--prompts", required=True)
    parser.add_argument("--configs", required=True)
    parser.add_argument("--limit", type=int, default=8, help="videos, spread evenly over all")
    parser.add_argument("--seed", type=int, default=1000, help="of the noise")
    parser.add_argument("--speedups", type=float, nargs="+", default=SPEEDUPS)
    parser.add_argument("--variants", nargs="+", help="only these, and the policy itself")
    parser.add_argument(
        "--evaluations", type=int, default=40, help="generations of a search, per video"
    )
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    return parser


def spread(items: list, limit: int) -> list:
    """At most `limit` items, evenly spaced."""
    count = min(limit, len(items))
    return [items[number * len(items) // count] for number in range(count)]


def ablate(
    pipe: Any,
    networks: dict[str, Training],
    generations: Sequence[ProfiledGeneration],
    videos: Sequence[Video],
    *,
    work: Path,
    speedups: Sequence[float] = SPEEDUPS,
    variants: Sequence[str] | None = None,
    num_evaluations: int = 40,
) -> pd.DataFrame:
    """Train, generate and measure what is missing under `work`.

    Args:
        pipe: A diffusers pipeline.
        networks: The full policy's among them.
        generations: What the full policy is trained on.
        videos: What is generated by every variant.
        work: Folder of networks and rows.
        speedups: What the numbers of computed steps stand for.
        variants: Names of those wanted; all if not given.
        num_evaluations: Of each search.

    Returns:
        One row per variant, video and speed-up (setting, for those that have no speed-up).

    Raises:
        UserError: If a variant is unknown, or `work` holds ablations of something else.
    """
    known = [*networks, *PLANNED, ForesightRun.name, SearchRun.name]
    unknown = [name for name in variants or () if name not in known]
    if unknown:
        raise UserError(f"--variants {unknown[0]}: unknown here; choose from {', '.join(known)}")
    wanted = {FULL, *(variants or known)}
    policies = {name: each.run() for name, each in networks.items() if name in wanted}
    policies[FULL].check(pipe)
    _claim(pipe, work, policies[FULL], speedups, num_evaluations)
    planned = {name: ExactCount.of(policy) for name, policy in policies.items()}
    planned |= {
        name: make(policies[FULL], generations) for name, make in PLANNED.items() if name in wanted
    }
    runs: list[Run] = [PlannedRun(name, each, speedups) for name, each in planned.items()]
    if ForesightRun.name in wanted:
        runs.append(ForesightRun(policies[FULL]))
    jobs = [(video, run) for video in videos for run in runs]
    if SearchRun.name in wanted:
        speedup = min(speedups, key=lambda each: abs(each - SEARCHED_SPEEDUP))
        search = SearchRun(policies[FULL], speedup, num_evaluations, seed=0)
        jobs += [(video, search) for video in spread(list(videos), NUM_SEARCHED)]
    _generate(pipe, [job for job in jobs if not _part(work, *job).is_file()], work)
    parts = [pd.read_csv(_part(work, *job), keep_default_na=False) for job in jobs]
    rows = pd.concat(parts, ignore_index=True)
    return rows.assign(speedup=pd.to_numeric(rows["speedup"]))


def _generate(pipe: Any, jobs: Sequence[tuple[Video, Run]], work: Path) -> None:
    """Run the jobs, video by video, and keep the rows of each as they come."""
    videos = dict.fromkeys(video for video, _ in jobs)
    total = len(videos) + sum(run.num_generations for _, run in jobs)
    with tqdm(total=total, desc="ablations", unit="generation", smoothing=0.02) as bar:
        for video in videos:
            reference = generate(pipe, video.prompt.text, video.config, seed=video.seed)
            bar.update()
            bench = Bench(pipe, video, reference, bar.update)
            for run in [run for wanted, run in jobs if wanted == video]:
                bar.set_postfix_str(f"{run.name}, {video.prompt.text[:30]}")
                rows = pd.DataFrame(run.rows(bench))
                path = _part(work, video, run)
                path.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(path, rows.to_csv(index=False).encode())


def _part(work: Path, video: Video, run: Run) -> Path:
    return work / "parts" / run.name / f"{video.key}.csv"


def _claim(
    pipe: Any, work: Path, policy: LearnedPolicy, speedups: Sequence[float], num_evaluations: int
) -> None:
    """Note what the rows under `work` are of; refuse a folder with those of something else."""
    setup = {
        "model": fingerprint(pipe),
        "device": device_name(pipe),
        "dtype": str(pipe.transformer.dtype),
        "policy": policy.digest(),
        "speedups": list(speedups),
        "evaluations": num_evaluations,
    }
    path = work / "setup.json"
    if not path.is_file():
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
