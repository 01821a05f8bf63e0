"""The `foresight` command: profile, generate, compare, inspect. Torch loads only for work."""

import argparse
import os
import re
import sys
import warnings
from pathlib import Path
from typing import Never

from foresight.config import UserError, load_configs, load_prompts


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Never:
        _fail(message)


def _fail(message: object) -> Never:
    sys.stderr.write(f"foresight: {' '.join(str(message).split())}\n")
    raise SystemExit(2)


def build_parser() -> argparse.ArgumentParser:
    """Parser of all commands."""
    parser = _Parser(
        prog="foresight", description="Learned reuse policies for video diffusion transformers."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    shape = argparse.ArgumentDefaultsHelpFormatter

    def add(name: str, summary: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=summary, description=summary, formatter_class=shape)

    profile = add(
        "profile", "Log how every block's residual moves, over prompts and configurations."
    )
    _add_model(profile)
    _add_inputs(profile)
    profile.add_argument(
        "--output", required=True, type=Path, help="trace set; continued if it is there"
    )
    profile.add_argument(
        "--rollouts", type=_at_least(0), default=4, help="plans to try per generation"
    )
    profile.add_argument(
        "--policy",
        help="trained policy whose own plans to try, instead of sampled ones; a second trace set "
        "made so lets train-policy see what its plans do",
    )
    profile.add_argument(
        "--sketch-width", type=_at_least(64), default=4093, help="numbers per sketch"
    )
    profile.add_argument(
        "--seed", type=int, default=0, help="of the first generation; then counted up"
    )

    generate = add("generate", "Generate one video, with a policy if one is given.")
    _add_model(generate)
    generate.add_argument("--prompt", required=True, help="what the video shows")
    generate.add_argument(
        "--policy",
        default="none",
        help="policy folder, hub id or built-in name; folder[fine_tuned=true] is for a model that "
        "was fine-tuned after the policy was trained",
    )
    wanted = generate.add_mutually_exclusive_group()
    wanted.add_argument(
        "--speedup", type=float, help="wanted denoising speed-up, for a trained policy"
    )
    wanted.add_argument(
        "--quality",
        type=float,
        metavar="DB",
        help="wanted PSNR against the uncached video, for a trained policy; as fast as that allows",
    )
    generate.add_argument(
        "--confidence",
        type=float,
        default=0.9,
        help="share of generations that must reach --quality",
    )
    generate.add_argument(
        "--max-cache-bytes",
        type=_at_least(1),
        metavar="BYTES",
        help="the most to keep from step to step, for a trained policy",
    )
    generate.add_argument("--output", required=True, type=Path, help="mp4 file")
    generate.add_argument("--height", type=_at_least(8), default=64, help="pixels")
    generate.add_argument("--width", type=_at_least(8), default=64, help="pixels")
    generate.add_argument("--num-frames", type=_at_least(1), default=16, help="frames")
    generate.add_argument(
        "--num-inference-steps", type=_at_least(1), default=30, help="denoising steps"
    )
    generate.add_argument("--guidance-scale", type=float, default=4.0, help="CFG scale")
    generate.add_argument("--seed", type=int, default=0, help="of the noise")
    generate.add_argument(
        "--fps", type=_at_least(1), default=8, help="frames per second of the file"
    )

    compare = add(
        "compare", "Run policies against the uncached model, measure, and write a report."
    )
    _add_model(compare)
    compare.add_argument(
        "--policies",
        required=True,
        help="comma-separated policy folders and built-in names; a name is swept over its knob, "
        "name[option=value,...] is one setting, folder[fine_tuned=true] is for a model that was "
        "fine-tuned after the policy was trained",
    )
    _add_inputs(compare)
    compare.add_argument(
        "--output", required=True, type=Path, help="folder of results and report.html"
    )
    compare.add_argument(
        "--seeds", type=int, nargs="+", default=[1000], help="every prompt runs with each"
    )
    compare.add_argument("--speedups", type=float, nargs="+", help="asked of trained policies")
    compare.add_argument(
        "--qualities", type=float, nargs="+", default=[], help="PSNR in dB, asked of them as well"
    )
    compare.add_argument(
        "--repeats", type=_at_least(1), default=1, help="runs per setting; median time counts"
    )

    inspect = add("inspect", "Draw what a trace set or a policy's plans look like.")
    inspect.add_argument("path", type=Path, metavar="DIR|POLICY", help="trace set or policy folder")
    inspect.add_argument(
        "--output", type=Path, help="folder of the figures; by default PATH/figures"
    )
    return parser


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, help="diffusers pipeline folder or hub id")
    parser.add_argument("--device", help="such as cuda or cpu; by default the GPU if there is one")


def _add_inputs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--prompts", required=True, type=Path, help="text file, one prompt a line")
    parser.add_argument("--configs", required=True, type=Path, help="JSON list of configurations")
    parser.add_argument(
        "--limit", type=_at_least(1), help="take so many, spread evenly over the file"
    )


def _at_least(least: int):  # noqa: ANN202 - a converter for argparse
    def number(text: str) -> int:
        if not text.lstrip("-").isdigit() or int(text) < least:
            raise argparse.ArgumentTypeError(
                f"must be a whole number of at least {least}, not {text}"
            )
        return int(text)

    return number


def split_policies(text: str) -> list[str]:
    """Split at commas that stand outside brackets."""
    return [part.strip() for part in re.split(r",(?![^\[]*\])", text) if part.strip()]


def main(arguments: list[str] | None = None) -> None:
    """Run a command; bad input ends in one line on stderr and exit code 2."""
    args = build_parser().parse_args(arguments)
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    warnings.filterwarnings("ignore", category=FutureWarning)
    try:
        {"profile": _profile, "generate": _generate, "compare": _compare, "inspect": _inspect}[
            args.command
        ](args)
    except UserError as error:
        _fail(error)
    except KeyboardInterrupt:
        sys.stderr.write("foresight: stopped; the same command goes on from here\n")
        raise SystemExit(130) from None


def _profile(args: argparse.Namespace) -> None:
    prompts, configs = spread(load_prompts(args.prompts), args.limit), load_configs(args.configs)
    from foresight.pipeline import load_pipeline
    from foresight.profiling import profile

    policy = None
    if args.policy is not None:
        from foresight.policies.learned import LearnedPolicy

        policy = LearnedPolicy.from_pretrained(args.policy)
    pipe = load_pipeline(args.model, device=args.device)
    profile(
        pipe,
        prompts,
        configs,
        args.output,
        rollouts=args.rollouts,
        sketch_width=args.sketch_width,
        seed=args.seed,
        policy=policy,
    )
    sys.stdout.write(f"trace set: {args.output}\n")


def _generate(args: argparse.Namespace) -> None:
    if args.output.suffix != ".mp4":
        _fail(f"--output {args.output} must end in .mp4")
    from foresight.config import GenerationConfig
    from foresight.pipeline import generate, load_pipeline, write_video
    from foresight.policies import load_policy

    policy = load_policy(args.policy)
    if args.speedup is not None:
        policy = policy.at(args.speedup)
    if args.quality is not None:
        policy = policy.reaching(args.quality, args.confidence)
    if args.max_cache_bytes is not None:
        policy = policy.within(args.max_cache_bytes)
    config = GenerationConfig(
        args.height, args.width, args.num_frames, args.num_inference_steps, args.guidance_scale
    )
    pipe = load_pipeline(args.model, device=args.device)
    result = generate(pipe, args.prompt, config, seed=args.seed, policy=policy)
    write_video(result.frames, args.output, fps=args.fps, scale=max(1, 256 // args.height))
    sys.stdout.write(f"{result.report}\nvideo: {args.output}\n")


def _compare(args: argparse.Namespace) -> None:
    prompts, configs = load_prompts(args.prompts), load_configs(args.configs)
    from foresight.curves import equal_speed_table
    from foresight.evaluation import SPEEDUPS, compare
    from foresight.pipeline import load_pipeline
    from foresight.report import write_report

    pipe = load_pipeline(args.model, device=args.device)
    results = compare(
        pipe,
        split_policies(args.policies),
        prompts,
        configs,
        output=args.output,
        seeds=args.seeds,
        speedups=args.speedups or SPEEDUPS,
        qualities=args.qualities,
        limit=args.limit,
        repeats=args.repeats,
    )
    sys.stdout.write(f"{equal_speed_table(results)}\nreport: {write_report(args.output)}\n")


def _inspect(args: argparse.Namespace) -> None:
    from foresight.inspection import inspect_path

    for path in inspect_path(args.path, args.output or args.path / "figures"):
        sys.stdout.write(f"{path}\n")


def spread(items: list, limit: int | None) -> list:
    """At most `limit` items, evenly spaced over the list, so that every category has its share."""
    if limit is None or limit >= len(items):
        return items
    return [items[(2 * number + 1) * len(items) // (2 * limit)] for number in range(limit)]
