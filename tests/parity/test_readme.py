"""The README's example with transformers."""

import re
from pathlib import Path

README = (Path(__file__).parent.parent.parent / "README.md").read_text(encoding="utf-8")


def test_the_readmes_example_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (code,) = [code for code in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "transformers" in code]
    assert len(code.strip().splitlines()) <= 13
    exec(compile(code, "README.md", "exec"), {})
    assert "(1, 4, 100)" in capsys.readouterr().out
