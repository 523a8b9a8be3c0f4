"""docs/papers.md names the line that does what a paper says. `python tests/test_papers.py` moves the numbers."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAPERS = ROOT / "docs" / "papers.md"
LINK = re.compile(r"\[(?P<file>[\w./]+):(?P<line>\d+)\]\(\.\./(?P<path>[\w./]+)#L(?P<anchor>\d+) '(?P<text>[^']+)'\)")


def line_of(path: str, text: str) -> int:
    """Where a fragment stands first in a file; 0 where it does not."""
    lines = (ROOT / path).read_text(encoding="utf-8").splitlines()
    return next((number for number, line in enumerate(lines, 1) if text in line), 0)


def moved(match: re.Match) -> str:
    """The link with its number brought up to date."""
    path, text = match["path"], match["text"]
    line = line_of(path, text)
    return f"[{path}:{line}](../{path}#L{line} '{text}')"


def test_every_line_holds_what_is_said_of_it():
    links = list(LINK.finditer(PAPERS.read_text(encoding="utf-8")))
    assert len(links) > 50
    for link in links:
        assert line_of(link["path"], link["text"]) > 0, f"{link['text']!r} is no longer in {link['path']}"
        assert link[0] == moved(link), f"{link[0]} moved: run python tests/test_papers.py"


if __name__ == "__main__":
    PAPERS.write_text(LINK.sub(moved, PAPERS.read_text(encoding="utf-8")), encoding="utf-8")
