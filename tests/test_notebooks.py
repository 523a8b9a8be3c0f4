"""The pages of the notebooks belong to their sources, and are written as they should be. `make notebooks` runs them."""

import base64
import importlib.util
import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "docs" / "notebooks"
SPEC = importlib.util.spec_from_file_location("execute", FOLDER / "execute.py")
execute = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(execute)


@pytest.mark.parametrize("source", execute.SOURCES, ids=lambda path: path.stem)
def test_a_page_is_that_of_its_source_and_has_its_pictures(source):
    page = (FOLDER.parent / f"{source.stem}.md").read_text(encoding="utf-8")
    assert page.split("\n\n")[1] == execute.origin(source), f"run `make notebooks`: {source.name} has changed"
    linked = set(re.findall(r"!\[[^\]]+\]\(notebooks/([^)]+)\)", page))
    assert linked == {f"{source.stem}/{path.name}" for path in (FOLDER / source.stem).iterdir()}


def test_every_page_has_a_source():
    assert {path.name for path in FOLDER.iterdir() if path.is_dir()} - {"__pycache__"} == {
        path.stem for path in execute.SOURCES
    }


TITLE = {"cell_type": "markdown", "source": "# Small\n\nOne.\n\nTwo.", "metadata": {}}


def printed(text, name="stdout"):
    return {"output_type": "stream", "name": name, "text": text}


def code(source, *outputs, **metadata):
    return {"cell_type": "code", "source": source, "outputs": list(outputs), "metadata": metadata}


def drawn(content):
    values = {"image/png": base64.b64encode(content).decode(), "text/plain": "<Figure>"}
    return {"output_type": "display_data", "data": values, "metadata": {}}


def test_a_page_has_text_code_what_was_printed_and_pictures_in_order(tmp_path):
    source = tmp_path / "small.py"
    source.write_text("the source")
    cells = [
        TITLE,
        code("silent = 1"),
        code("warn()\nshow()", printed("one\n"), printed("/home/me: warning\n", "stderr"), printed("two\n")),
        code("draw()", printed("three"), drawn(b"first"), printed("four"), drawn(b"second"), title="Two lines"),
    ]
    text, pictures = execute.page(source, cells)
    title, line, rest = text.split("\n\n", 2)
    digest = "b608089734879cfb06c974d592537dd3e28086592f7f5556b82c836c8f7edb17"
    assert title == "# Small"
    assert line == f"<!-- Written by `make notebooks` from docs/notebooks/small.py, sha256 {digest}. -->"
    assert rest == (
        "One.\n\nTwo.\n\n```python\nsilent = 1\n```\n\n```python\nwarn()\nshow()\n```\n\n```text\none\ntwo\n```\n\n"
        "```python\ndraw()\n```\n\n```text\nthree\n```\n\n![Two lines](notebooks/small/1.png)\n\n"
        "```text\nfour\n```\n\n![Two lines](notebooks/small/2.png)\n"
    )
    assert pictures == {"1.png": b"first", "2.png": b"second"}


def test_a_cell_that_ends_with_a_value_is_refused(tmp_path):
    source = tmp_path / "small.py"
    source.write_text("")
    value = {"output_type": "execute_result", "data": {"text/plain": "42"}, "metadata": {}}
    with pytest.raises(ValueError, match="a cell ends with a value, 42; print it, or assign it to a name"):
        execute.page(source, [TITLE, code("6 * 7", value)])


def test_a_picture_without_a_description_is_refused(tmp_path):
    source = tmp_path / "small.py"
    source.write_text("")
    with pytest.raises(ValueError, match=r"a cell draws a picture without a title that describes it: draw\(\)"):
        execute.page(source, [TITLE, code("draw()", drawn(b"first"))])
