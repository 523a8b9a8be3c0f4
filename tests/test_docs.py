"""The pages of docs/: navigation, links, commands, and the public names on the page of the API."""

import importlib
import re
import shlex
from pathlib import Path

import pytest
import yaml

import bertgpt
from bertgpt import data
from train import config as configs
from train.__main__ import VERBS, Parser

ROOT = Path(__file__).parent.parent
OUTSIDE = [ROOT / name for name in ("README.md", "README.zh.md", "CONTRIBUTING.md")]
PAGES = [*OUTSIDE, *sorted((ROOT / "docs").rglob("*.md"))]
RUN = ["-m", "train"]


class Loader(yaml.SafeLoader):
    """Reads mkdocs.yml, whose tag !ENV is a list of a variable and its default."""


Loader.add_constructor("!ENV", lambda loader, node: loader.construct_sequence(node)[-1])


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```|`[^`\n]*`", "", text, flags=re.DOTALL | re.MULTILINE)


def named(entries: list) -> list[str]:
    """The pages of a navigation, in order."""
    values = [value for entry in entries for value in (entry.values() if isinstance(entry, dict) else [entry])]
    return [page for value in values for page in (named(value) if isinstance(value, list) else [value])]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and the site make them."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", text_of(page), flags=re.DOTALL | re.M), re.M)
    return {
        re.sub(r"[^\w\- ]", "", re.sub(r"\]\(.*?\)", "", heading)).strip().lower().replace(" ", "-")
        for heading in headings
    }


def test_every_page_is_in_the_navigation_once():
    found = named(yaml.load(text_of(ROOT / "mkdocs.yml"), Loader)["nav"])
    pages = [page.relative_to(ROOT / "docs").as_posix() for page in PAGES[len(OUTSIDE) :]]
    assert sorted(page for page in found if "://" not in page) == sorted(pages)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_relative_link_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)[^)]*\)", without_code(text_of(page))):
        path, _, anchor = target.partition("#")
        if "://" in path:
            continue
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        assert file.is_relative_to(ROOT), target
        assert not anchor or file.suffix != ".md" or anchor in anchors(file), target


def test_every_public_name_is_on_the_api_page():
    entries = re.findall(r"^::: (\S+)$", text_of(ROOT / "docs" / "api.md"), re.M)
    inner = {f"bertgpt.data.{name}" for name in data.__all__}
    outer = {f"bertgpt.{name}" for name in bertgpt.__all__ if name != "data" and name not in data.__all__}
    assert sorted(entries) == sorted(inner | outer)


def commands(page: Path) -> list[list[str]]:
    """The commands of a page that are complete: those in blocks of bash."""
    blocks = re.findall(r"^```bash\n(.*?)^```", text_of(page).replace("\\\n", " "), re.DOTALL | re.M)
    lines = [shlex.split(line, comments=True) for block in blocks for line in block.splitlines()]
    return [line[line.index("train") + 1 :] for line in lines if RUN[0] in line and line[line.index("-m") :][:2] == RUN]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_has_arguments_and_keys_that_exist(page):
    for verb, *arguments in commands(page):
        if verb == "--version":
            continue
        assert verb in VERBS
        parser = Parser()
        importlib.import_module(f"train.cli.{verb.replace('-', '_')}").add_arguments(parser)
        options = parser.parse_intermixed_args(arguments)
        if hasattr(options, "config"):
            configs.load(str(ROOT / options.config), options.overrides)


def test_the_example_of_serving_computes_the_models_logits(tmp_path, monkeypatch, wordpiece):
    import jax
    import numpy as np

    from bertgpt.inference.stablehlo import export_stablehlo

    sizes = {
        "vocab_size": wordpiece.get_vocab_size(),
        "hidden_size": 16,
        "num_layers": 1,
        "num_heads": 2,
        "mlp_size": 32,
    }
    model = bertgpt.BertForSequenceClassification(bertgpt.presets.bert_tiny(**sizes))
    params = jax.jit(model.init)(jax.random.key(0), np.zeros((1, 2), np.int32))["params"]
    export_stablehlo(tmp_path / "exported" / "program", model, params, wordpiece)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    (code,) = re.findall(r"```python\n(.*?)```", text_of(ROOT / "docs" / "serving.md"), re.DOTALL)
    exec(compile(code, "docs/serving.md", "exec"), names)
    ids = np.array([wordpiece.encode("a short text").ids], np.int32)
    together = names["logits"](["a short text", "a text that is longer"])
    np.testing.assert_allclose(together[:1], model.apply({"params": params}, ids).head_logits, rtol=1e-4, atol=1e-5)
