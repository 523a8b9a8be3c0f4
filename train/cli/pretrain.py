"""Pretrain BERT or GPT-1 from a configuration. Run the same command again to resume."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments: a configuration and overrides."""
    parser.add_argument("config", metavar="CONFIG", help="a YAML file, or the name of a recipe, such as bert_demo")
    parser.add_argument("overrides", metavar="KEY=VALUE", nargs="*", help="dotted keys, such as train.steps=1000")


def run(options: argparse.Namespace) -> None:
    """Load the configuration and train."""
    from .. import config

    settings = config.load_run(options.config, options.overrides)

    from ..jobs.pretraining import pretrain  # a slow import; a mistake in the configuration is reported first

    pretrain(settings)
