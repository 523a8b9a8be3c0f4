"""Run folders. The trainer reads their checkpoints, if it is installed; the library does not import it."""

from importlib import metadata
from pathlib import Path

from bertgpt.checkpoints.parameters import Params
from bertgpt.errors import InputError
from bertgpt.model.blocks import Model

GROUP = "bertgpt.runs"  # of entry points; the trainer has one in pyproject.toml


def is_run(folder: Path) -> bool:
    """Whether a folder is that of a run, as for the commands."""
    return (folder / "config.yaml").is_file()


def read_run(folder: Path, step: int | None) -> tuple[Model, Params]:
    """Return the model and the parameters of a checkpoint of a run.

    Args:
        folder: of the run.
        step: of the checkpoint; None: the best, or the newest if none was evaluated.

    Raises:
        InputError: there is no such intact checkpoint, or a package that reads it is missing.
    """
    needs = f'{folder}: is a run folder; to read it, install the trainer: pip install "bertgpt[train]"'
    found = list(metadata.entry_points(group=GROUP))
    if not found:
        raise InputError(needs)
    try:
        read = found[0].load()
    except ModuleNotFoundError as error:
        raise InputError(f"{needs} ({error.name} is missing)") from error
    return read(folder, step)
