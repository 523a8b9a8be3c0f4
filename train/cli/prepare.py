"""Tokenize the corpus of a configuration to its token store; a store that is up to date is kept."""

import argparse
from typing import TYPE_CHECKING

from bertgpt.errors import InputError

from . import pretrain, whole_number

if TYPE_CHECKING:
    from ..folders.distributed_preparation import TaskOptions


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `pretrain`, and how the work is distributed."""
    pretrain.add_arguments(parser)
    parser.add_argument(
        "--tasks",
        type=whole_number,
        metavar="N",
        help="split the files into N tasks, of which data.workers run at once",
    )
    parser.add_argument("--verify", action="store_true", help="check every file of an existing store for damage")
    parser.add_argument("--ray", action="store_true", help="run on the Ray cluster at RAY_ADDRESS, or on a local one")
    parser.add_argument(
        "--slurm", metavar="KEY=VALUE,...", help="run on Slurm with these sbatch options: partition=...,time=..."
    )


def run(options: argparse.Namespace) -> None:
    """Prepare the store that `pretrain` uses with the same arguments."""
    from .. import config

    settings = config.load(options.config, options.overrides)
    task_options = _task_options(options, settings.data.workers)

    from ..folders import run_folder, token_store
    from ..reports import say

    initial = run_folder.find_initial_model(settings)
    if not token_store.prepare_store(settings, initial, task_options, options.verify):
        return say("submitted to Slurm, whose last job makes the store; to retry failed tasks, run the command again")
    token_store.warn_of_tokenizer(settings)
    say(f"ready: {token_store.store_folder(settings)}")


def _task_options(options: argparse.Namespace, workers: int | None) -> "TaskOptions | None":
    if options.tasks is None:
        if options.ray or options.slurm is not None:
            raise InputError("--ray and --slurm need --tasks N, the number of tasks to split the files into")
        return None
    if options.tasks < 1 or (options.ray and options.slurm is not None):
        raise InputError("--tasks must be at least 1, and --ray and --slurm exclude each other")
    try:
        from ..folders.distributed_preparation import TaskOptions
    except ModuleNotFoundError as error:
        raise InputError(f"--tasks needs {error.name}: pip install 'bertgpt[scale]'") from error
    command = ("prepare", options.config, *options.overrides, "--tasks", str(options.tasks))
    return TaskOptions(options.tasks, workers, options.ray, _sbatch_options(options.slurm), command)


def _sbatch_options(text: str | None) -> dict[str, str] | None:
    if text is None:
        return None
    pairs = [item.partition("=") for item in text.split(",")]
    if any(not key or not value for key, _, value in pairs):
        raise InputError(f"--slurm {text}: give KEY=VALUE,..., such as partition=cpu,time=12:00:00,account=mine")
    return {key: value for key, _, value in pairs}
