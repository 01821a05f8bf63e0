"""The `train-policy` command."""

import sys
from typing import Never

import jsonargparse

from foresight.config import UserError
from policy_training.config import TrainConfig


class _Parser(jsonargparse.ArgumentParser):
    """Says what is wrong in one line, without the usage text."""

    def error(self, message: str, ex: Exception | None = None) -> Never:
        del ex
        _fail(message)


def _fail(message: object) -> Never:
    sys.stderr.write(f"train-policy: {' '.join(str(message).split())}\n")
    raise SystemExit(2)


def build_parser() -> jsonargparse.ArgumentParser:
    """Parser of `train-policy DIR [DIR ...] --output POLICY`; help comes from `TrainConfig`."""
    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = _Parser(prog="train-policy")
    parser.add_argument("--config", action="config", help="YAML file with any of the settings.")
    parser.add_argument("dirs", nargs="+", metavar="DIR", help="Trace sets, all of one model.")
    parser.add_class_arguments(TrainConfig, None, skip={"dirs"})
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Train a policy from the command line; bad input ends in one line and exit code 2."""
    namespace = build_parser().parse_args(arguments)
    settings = namespace.as_dict()
    settings.pop("config", None)
    try:
        config = TrainConfig(**settings)
        from policy_training.train import train  # torch: only once there is work to do

        folder = train(config)
    except UserError as error:
        _fail(error)
    sys.stdout.write(f"policy: {folder}\n")
