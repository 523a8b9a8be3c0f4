"""Tokenize the corpus of a configuration to its token store; nothing is done where the store is up to date."""

import argparse

from train.commands.pretrain import add_arguments

__all__ = ["add_arguments", "run"]


def run(options: argparse.Namespace) -> None:
    """Prepares the store that `pretrain` with the same arguments uses."""
    from train import config, runs
    from train.reports import say

    settings = config.load(options.config, options.overrides)
    runs.prepare_store(settings, runs.find_start(settings))
    say(f"ready: {runs.store_folder(settings)}")
