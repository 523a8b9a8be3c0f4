"""Print the parameters, FLOPs and memory per device that a run needs, without allocating anything."""

import argparse

from ..cli.pretrain import add_arguments as add_config
from . import whole_number

MOST_DEVICES = 16_384  # more than the largest slices have; JAX takes minutes to make as many


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments: a configuration, overrides, and the devices."""
    add_config(parser)
    devices = parser.add_mutually_exclusive_group()
    devices.add_argument("--devices", type=whole_number, help="number of devices to simulate (default: local devices)")
    devices.add_argument(
        "--topology",
        help="accelerators to compile for, here or elsewhere: v5e:2x4, v5p:2x2x1, v6e:4x4, h100:8, a100:8 (TPUs need "
        "the extra aot-tpu, GPUs the extra cuda)",
    )


def run(options: argparse.Namespace) -> None:
    """Print the plan line by line."""
    import jax

    from .. import config
    from ..reports import say

    settings = config.load(options.config, options.overrides)
    if options.devices is not None:
        if not 1 <= options.devices <= MOST_DEVICES:
            raise config.InputError(f"--devices is {options.devices}; give from 1 to {MOST_DEVICES:,}")
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", options.devices)

    if options.topology is not None:
        jax.config.update("jax_platforms", "cpu")  # no device of this machine is needed

        from ..jobs import compiling

        lines = compiling.describe(settings, options.topology)
    else:
        from ..jobs import planning

        lines = planning.describe(settings)
    for line in lines:
        say(line)
