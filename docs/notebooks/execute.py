"""Execute the notebooks of this folder, and write each as a page with its outputs and pictures.

python docs/notebooks/execute.py [FOLDER of the pages, default docs] [--only NAME]

A notebook is a Python file in jupytext's percent format: `# %% [markdown]` begins text, `# %% Title` begins code. The
title describes the cell's picture to those who cannot see it. An exception, such as a failed assertion, ends the
command with an error, and the page stays as it was. A page holds the hash of its source, which `make test` compares.
"""

import argparse
import base64
import hashlib
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
PAGES = FOLDER.parent
SOURCES = sorted(path for path in FOLDER.glob("*.py") if path != Path(__file__))
LIMIT = 1800  # seconds of a cell, on a machine that has other load


def execute(source: Path) -> list[dict[str, Any]]:
    """Return the cells of a notebook with their outputs; the kernel starts in the root of the repository.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell raised an exception; the message contains the cell.
    """
    import jupytext  # here, because the functions below are also used without the extra `notebooks`
    from nbclient import NotebookClient

    os.environ["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"
    notebook = jupytext.read(source, fmt="py:percent")
    root = {"metadata": {"path": str(PAGES.parent)}}
    NotebookClient(notebook, timeout=LIMIT, kernel_name="python3", resources=root).execute()
    return notebook.cells


def page(source: Path, cells: list[dict[str, Any]]) -> tuple[str, dict[str, bytes]]:
    """Return the page of an executed notebook, and its pictures by file name.

    The first cell is text that begins with the title. What is printed to stderr is left out: warnings name folders of
    the machine.
    """
    title, _, opening = cells[0]["source"].partition("\n\n")
    name, parts, pictures = source.stem, [title, origin(source), opening], {}
    for cell in cells[1:]:
        if cell["cell_type"] == "markdown":
            parts.append(cell["source"])
            continue
        parts.append(fenced(cell["source"], "python"))
        for kind, value in results(cell["outputs"]):
            if kind == "image/png":
                if "title" not in cell["metadata"]:
                    raise ValueError(f"a cell draws a picture without a title that describes it: {cell['source']}")
                file = f"{len(pictures) + 1}.png"
                pictures[file] = base64.b64decode(value)
                parts.append(f"![{cell['metadata']['title']}](notebooks/{name}/{file})")
            else:
                parts.append(fenced(value, "text"))
    return "\n\n".join(parts) + "\n", pictures


def origin(source: Path) -> str:
    """Return the line below the title of a page: what made it, and the hash of its source."""
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    return f"<!-- Written by `make notebooks` from docs/notebooks/{source.name}, sha256 {digest}. -->"


def fenced(text: str, language: str) -> str:
    return f"```{language}\n{text.rstrip()}\n```"


def results(outputs: list[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    """Yield the pictures and the printed text of a cell in order; text that was printed in parts is joined."""
    printed = ""
    for output in outputs:
        if output["output_type"] == "stream":
            printed += output["text"] if output["name"] == "stdout" else ""
            continue
        data = output["data"]
        if "image/png" not in data:
            raise ValueError(f"a cell ends with a value, {data['text/plain']}; print it, or assign it to a name")
        if printed:
            yield "text/plain", printed
        printed = ""
        yield "image/png", data["image/png"]
    if printed:
        yield "text/plain", printed


def write(source: Path, pages: Path) -> None:
    """Execute a notebook, and write its page and its pictures."""
    began = time.monotonic()
    text, pictures = page(source, execute(source))
    folder = pages / "notebooks" / source.stem
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, picture in pictures.items():
        (folder / name).write_bytes(picture)
    (pages / f"{source.stem}.md").write_text(text, encoding="utf-8")
    print(f"{source.name}: {time.monotonic() - began:.0f} s, {len(pictures)} pictures", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="?", type=Path, default=PAGES, metavar="FOLDER")
    parser.add_argument("--only", choices=[source.stem for source in SOURCES])
    options = parser.parse_args()
    for source in SOURCES:
        if options.only in (None, source.stem):
            write(source, options.pages)


if __name__ == "__main__":
    main()
