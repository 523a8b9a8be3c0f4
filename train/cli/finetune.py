"""Fine-tune a model on a task from a configuration. Run the same command again to resume."""

import argparse

from ..cli.pretrain import add_arguments

__all__ = ["add_arguments", "run"]


def run(options: argparse.Namespace) -> None:
    """Load the configuration and train."""
    from .. import config

    settings = config.load_run(options.config, options.overrides)

    from ..jobs.finetuning import finetune  # a slow import; a mistake in the configuration is reported first

    finetune(settings)
