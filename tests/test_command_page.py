"""docs/commands.md lists every command with its arguments. `python tests/test_command_page.py` writes it anew."""

import argparse
import importlib
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # as a script, describe this checkout

from train.__main__ import VERBS, Parser  # noqa: E402

PAGE = ROOT / "docs" / "commands.md"
OPENING = """# Commands

<!-- Written by `python tests/test_command_page.py` from the parsers of train/cli. -->

To find the arguments of a command, read its table. In a clone, a command is `.venv/bin/python -m train COMMAND ...`.
With an installed wheel it is `bertgpt COMMAND ...`. `--help` after a command prints the same, and `--version` alone the
versions and the devices.

A run that is interrupted resumes when you give the same command again. The exit code is 0 if all went well, 2 for a
mistake that you can correct (one line says what to do), 1 for a fault of the program, and 143 or 130 if the run was
stopped by SIGTERM or Ctrl-C.

| command | what it does |
|---|---|
"""
HEADER = "| argument | meaning |\n|---|---|\n"


def name(action: argparse.Action) -> str:
    """An argument as the user types it."""
    value = action.metavar or (action.dest.upper() if action.nargs != 0 else "")
    if action.choices:
        value = ",".join(action.choices)
    return f"{', '.join(action.option_strings)} {value}".strip()


def cell(text: str) -> str:
    """A text that stays in its cell, with what looks like a tag shown as it is."""
    return text.replace("|", "&#124;").replace("<", "&lt;")


def arguments(verb: str) -> tuple[str, list[argparse.Action]]:
    """The description of a command and its arguments."""
    command = importlib.import_module(f"train.cli.{verb.replace('-', '_')}")
    parser = Parser(add_help=False)
    command.add_arguments(parser)
    return command.__doc__, parser._actions


def section(verb: str) -> str:
    description, actions = arguments(verb)
    typed = " ".join(f"[{name(a)} ...]" if a.nargs == "*" else name(a) for a in actions if not a.option_strings)
    rows = [f"| `{name(action)}` | {cell(action.help)} |\n" for action in actions]
    return (
        f"\n## {verb}\n\n{cell(description)}\n\n```text\npython -m train {verb} {typed}\n```\n\n{HEADER}{''.join(rows)}"
    )


def page() -> str:
    table = [f"| [{verb}](#{verb}) | {text} |\n" for verb, text in VERBS.items()]
    return "".join([OPENING, *table, *map(section, VERBS)])


def test_the_page_is_what_the_parsers_say():
    assert PAGE.read_text(encoding="utf-8") == page(), "run python tests/test_command_page.py"


def test_every_argument_says_what_it_means():
    for verb in VERBS:
        for action in arguments(verb)[1]:
            assert len(action.help or "") > 5, (verb, action.dest)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
