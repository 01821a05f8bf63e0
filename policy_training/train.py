"""Training as an outline: read and split, fit the policy and its ablations, measure, export."""

import hashlib
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning
import numpy as np
from lightning.pytorch.callbacks import ModelCheckpoint, Timer
from lightning.pytorch.loggers import TensorBoardLogger

from foresight.config import UserError
from foresight.policies.reaction import ReactionModel
from policy_training.config import TrainConfig
from policy_training.dataset import TraceData
from policy_training.export import export
from policy_training.generations import ProfiledGeneration, load_generations, split_by_prompt
from policy_training.measure import measure
from policy_training.module import ReuseTraining
from policy_training.paths import trust_in_pace
from policy_training.reaction import fit_reaction
from policy_training.trainer_parts import AtomicCheckpoints, Progress, one_thread, quiet_lightning

ABLATIONS = ("without prompt", "shuffled prompt")


def train(config: TrainConfig) -> Path:
    """Train a policy and export it; a run that was interrupted goes on where it stopped.

    Returns:
        The policy's folder, `config.output`.

    Raises:
        UserError: If a trace set is unusable, or `config.output` belongs to another run.
    """
    generations = load_generations(config.dirs)
    train_side, held_out = split_by_prompt(generations, config.validation_fraction, config.seed)
    if claim(config, generations):
        return config.output
    use = "prompt" if config.prompt else "without prompt"
    ablations = ABLATIONS if config.prompt and config.ablate else ()
    sides = {each: TraceData(train_side, held_out, config, each) for each in (use, *ablations)}
    started = time.perf_counter()
    reaction = fit_reaction(sides[use].train_rollouts)
    reaction_seconds = time.perf_counter() - started
    fitted = {each: (fit(config, data, each, reaction), data) for each, data in sides.items()}
    results = measure(config, fitted, reaction_seconds)
    export(config, fitted[use][0].model, train_side, held_out, results)
    return config.output


def claim(config: TrainConfig, generations: list[ProfiledGeneration]) -> bool:
    """Mark the output folder as this run's; return whether it already holds the finished policy.

    Raises:
        UserError: If the folder holds something else, or was begun with other settings or traces.
    """
    settings = _settings(config, generations)
    path = config.output / "training" / "run.json"
    if path.is_file():
        begun = json.loads(path.read_text("utf-8"))
        changed = [key for key in settings if begun.get(key) != settings[key]]
        if changed:
            raise UserError(
                f"--output {config.output} was begun with other settings ({', '.join(changed)}); "
                "repeat those, or choose another folder"
            )
        return (config.output / "config.json").is_file()
    if config.output.exists() and (not config.output.is_dir() or any(config.output.iterdir())):
        raise UserError(
            f"--output {config.output} exists and was not made by train-policy; "
            "choose another folder"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".tmp")
    partial.write_text(json.dumps(settings, indent=2) + "\n", "utf-8")
    partial.replace(path)
    return False


def _settings(config: TrainConfig, generations: list[ProfiledGeneration]) -> dict[str, Any]:
    """What must not change between a run and its continuation, as JSON values."""
    digest = hashlib.sha256()
    for generation in generations:
        digest.update(generation.trace["generation_id"].encode())
        digest.update(np.ascontiguousarray(generation.trace["gram"]).tobytes())
        digest.update(str([row["final_error"] for row in generation.rollouts]).encode())
    settings = asdict(config)
    del settings["dirs"], settings["output"]
    return {**settings, "traces": digest.hexdigest()}


def fit(config: TrainConfig, data: TraceData, use: str, reaction: ReactionModel) -> ReuseTraining:
    """Train one network with one use of the prompt; return it at its best held-out loss."""
    lightning.seed_everything(config.seed, workers=True, verbose=False)
    folder = config.output / "training" / use.replace(" ", "-")
    checkpoints = folder / "checkpoints"
    best = ModelCheckpoint(checkpoints, filename="best", monitor="val/loss")
    latest = ModelCheckpoint(checkpoints, filename="last", enable_version_counter=False)
    timer = Timer(verbose=False)  # kept in checkpoints
    last = checkpoints / "last.ckpt"
    with quiet_lightning(), one_thread():
        trainer = lightning.Trainer(
            max_epochs=config.max_epochs,
            accelerator="cpu",  # the network is far too small to gain from another device
            devices=1,
            plugins=[AtomicCheckpoints()],
            logger=TensorBoardLogger(folder.parent, name="", version=folder.name),
            callbacks=[best, latest, timer, Progress(use)],
            reload_dataloaders_every_n_epochs=1,
            num_sanity_val_steps=0,
            log_every_n_steps=5,
            gradient_clip_val=1.0,
            enable_model_summary=False,
        )
        trainer.fit(
            ReuseTraining.for_data(config, data, reaction),
            datamodule=data,
            ckpt_path=last if last.is_file() else None,
        )
    module = ReuseTraining.load_from_checkpoint(best.best_model_path).eval()
    module.seconds = timer.time_elapsed("train")
    module.model.pace_trust.fill_(trust_in_pace(module.model, data.held_out_buckets))
    return module
