"""Several runs next to each other: the keys in which they differ, their curves, and their final held-out figures."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from bertgpt.errors import InputError

from . import config as configs
from . import curves, reports
from .sections import KEYS

MOST_KEYS = 6  # that a legend names of a run


def compare(folders: Sequence[Path], picture: Path) -> None:
    """Draw the curves of runs over each other, and print how the runs differ and their final held-out figures.

    Args:
        folders: of the runs.
        picture: the PNG file to write.

    Raises:
        InputError: a folder has no metrics or is given twice, or a config.yaml cannot be read.
    """
    names = [str(folder) for folder in folders]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"{twice} is given twice; give each run once")
    rows = [reports.need_metrics(folder) for folder in folders]
    labels = label(folders)
    curves.draw(dict(zip(labels, rows, strict=True)), picture)
    reports.say(f"curves: {picture}")
    for text in labels:
        reports.say(text)
    scored = [[row for row in found if row["split"] == "eval"] for found in rows]
    reports.console.print(_table(_short(names), [found[-1] if found else {} for found in scored]))


def label(folders: Sequence[Path]) -> list[str]:
    """A text for each run: its name, and the values of the keys in which the configurations differ.

    Folders, such as `out`, are left out. A run without config.yaml has its name alone.
    """
    settings = [_settings(folder) for folder in folders]
    known = [found for found in settings if found]
    differing = [
        key
        for key in (known[0] if known else ())
        if KEYS[key].rules.path not in ("run", "mirror") and any(found[key] != known[0][key] for found in known)
    ]
    texts = []
    for name, found in zip(_short([str(folder) for folder in folders]), settings, strict=True):
        parts = [f"{key}={_shown(found[key])}" for key in differing[:MOST_KEYS] if found]
        more = len(differing) - MOST_KEYS
        parts += [f"and {more} more"] if found and more > 0 else []
        texts.append(f"{name}: {', '.join(parts)}" if parts else name)
    return texts


def _settings(folder: Path) -> dict[str, Any]:
    path = folder / "config.yaml"
    return configs.flatten(configs.to_dict(configs.load(str(path)))) if path.is_file() else {}


def _shown(value: Any) -> str:
    text = "null" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 40 else f"...{text[-37:]}"


def _short(names: Sequence[str]) -> list[str]:
    """The names without the folders that all have in common."""
    paths = [os.path.abspath(name) for name in names]
    return [os.path.relpath(path, os.path.commonpath([os.path.dirname(path) for path in paths])) for path in paths]


def _table(names: Sequence[str], rows: Sequence[dict[str, Any]]) -> Table:
    """A row for each held-out figure, and a column for each run."""
    table = Table(title="last held-out figures", title_justify="left")
    table.add_column("figure")
    for name in names:
        table.add_column(Text(name), justify="right")
    figures = dict.fromkeys(name for row in rows for name in row if name not in ("split", *reports.TIMINGS))
    for name in figures:
        table.add_row(Text(name), *(reports.shown(row[name]) if name in row else "-" for row in rows))
    return table
