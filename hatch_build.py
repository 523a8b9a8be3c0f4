"""Puts train/ and configs/ into the wheel as the package bertgpt_train: `train` would be anybody's name."""

import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class TrainerPackage(BuildHookInterface):
    """In an editable install bertgpt_train is a file that points to the checkout's train/."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the files of bertgpt_train to a wheel; `version` is "standard" or "editable"."""
        root = Path(self.root)
        if version != "editable":
            build_data["force_include"] |= {str(root / "train"): "bertgpt_train"}
            build_data["force_include"] |= {str(root / "configs"): "bertgpt_train/configs"}
            return
        self.folder = tempfile.TemporaryDirectory()
        pointer = Path(self.folder.name) / "__init__.py"
        pointer.write_text(f"__path__ = [{str(root / 'train')!r}]\n", encoding="utf-8")
        build_data["force_include_editable"][str(pointer)] = "bertgpt_train/__init__.py"
