"""Pretrain BERT or GPT-1 from a configuration; the same command again goes on where it stopped."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """A YAML file and overrides."""
    parser.add_argument("config", metavar="CONFIG", help="a YAML file, or the name of a recipe, such as bert_demo")
    parser.add_argument("overrides", metavar="KEY=VALUE", nargs="*", help="dotted keys, such as train.steps=1000")


def run(options: argparse.Namespace) -> None:
    """Loads the configuration and trains."""
    from .. import config

    settings = config.load(options.config, options.overrides)

    from ..jobs.pretraining import pretrain  # after the configuration, so that a mistake in it is told at once

    pretrain(settings)
