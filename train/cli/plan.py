"""Tell what a configuration needs - parameters, FLOPs, bytes a device - without making any of it."""

import argparse

from ..cli.pretrain import add_arguments as add_config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """A YAML file, overrides, and how many devices to plan for."""
    add_config(parser)
    parser.add_argument("--devices", type=int, help="plan for so many, simulated on this CPU; else for those here")


def run(options: argparse.Namespace) -> None:
    """Prints the plan line by line."""
    import jax

    from .. import config
    from ..reports import say

    settings = config.load(options.config, options.overrides)
    if options.devices is not None:
        if options.devices < 1:
            raise config.InputError(f"--devices {options.devices}: give 1 or more")
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", options.devices)

    from ..jobs import planning

    for line in planning.describe(settings):
        say(line)
