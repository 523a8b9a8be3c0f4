"""Fine-tune a model on a task from a configuration; the same command again goes on where it stopped."""

import argparse

from ..cli.pretrain import add_arguments

__all__ = ["add_arguments", "run"]


def run(options: argparse.Namespace) -> None:
    """Loads the configuration and trains."""
    from .. import config

    settings = config.load(options.config, options.overrides)

    from ..jobs.finetuning import finetune  # after the configuration, so that a mistake in it is told at once

    finetune(settings)
