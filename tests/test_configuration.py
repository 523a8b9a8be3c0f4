"""docs/configuration.md lists every key. `python tests/test_configuration.py` writes it anew from the code."""

import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # as a script, describe this checkout

from train.sections import KEYS, SECTIONS, Key  # noqa: E402

PAGE = ROOT / "docs" / "configuration.md"
OPENING = """# Configuration

<!-- Written by `python tests/test_configuration.py` from train/sections.py and bertgpt/data/tasks/task.py. -->

`pretrain`, `finetune`, `prepare` and `plan` take a YAML file, or the name of a recipe, and any number of
`dotted.key=value` after it. In a file the keys of a section are nested below its name. A key marked * may have another
value when a run is resumed; any other change is rejected.
"""
HEADER = "| key | default | values | meaning |\n|---|---|---|---|\n"


def shown(value: Any) -> str:
    """A default as YAML has it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def values(key: Key) -> str:
    """What a key takes."""
    rules, kind = key.rules, key.types[0]
    if rules.choices:
        return ", ".join(rules.choices)
    if rules.wanted or rules.path:
        return rules.wanted or "a path"
    limits = {"at least": rules.least, "above": rules.above, "under": rules.below, "at most": rules.most}
    bounds = [f"{word} {shown(bound)}" for word, bound in limits.items() if bound is not None]
    return " ".join([{str: "text", bool: "true or false", int: "integer", float: "number"}[kind], *bounds])


def row(name: str, key: Key) -> str:
    star = "*" if key.rules.resumable else ""
    return f"| `{name}`{star} | {shown(key.default)} | {values(key)} | {key.rules.meaning} |\n"


def page() -> str:
    parts = [OPENING]
    for section, kind in SECTIONS.items():
        rows = [row(name, key) for name, key in KEYS.items() if name.startswith(f"{section}.")]
        parts.append(f"\n## {section}\n\n{kind.__doc__}\n\n{HEADER}{''.join(rows)}")
    rows = [row(name, key) for name, key in KEYS.items() if "." not in name]
    return "".join([*parts, f"\n## Without a section\n\n{HEADER}{''.join(rows)}"])


def test_the_page_is_what_the_code_says():
    assert PAGE.read_text(encoding="utf-8") == page(), "run python tests/test_configuration.py"


def test_every_key_says_what_it_means_and_defaults_keep_their_rules():
    for name, key in KEYS.items():
        assert len(key.rules.meaning) > 5, name
        assert key.default is not None or key.optional, name
        assert "|" not in key.rules.meaning, name


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
