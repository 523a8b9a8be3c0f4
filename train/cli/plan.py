"""Print the parameters, FLOPs and memory per device that a run needs, without allocating anything."""

import argparse

from ..cli.pretrain import add_arguments as add_config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments: a configuration, overrides, and the number of devices."""
    add_config(parser)
    parser.add_argument("--devices", type=int, help="number of devices to simulate (default: local devices)")


def run(options: argparse.Namespace) -> None:
    """Print the plan line by line."""
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
