"""The command of a small run, as a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

from quick import QUICK

STEPS = 16


def command(config_file: Path, *overrides: str, verb: str = "pretrain", **variables: str) -> subprocess.Popen:
    """A command as a process of its own, on one device; `variables` of its environment."""
    environment = {**os.environ, "XLA_FLAGS": QUICK, "JAX_COMPILATION_CACHE_DIR": str(config_file.parent / "compiled")}
    environment |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    environment |= {"XDG_CACHE_HOME": str(config_file.parent / "cache"), **variables}
    arguments = [sys.executable, "-m", "train", verb, str(config_file), *overrides]
    return subprocess.Popen(arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
